// A wallet that announces itself (EIP-6963) or stands in the page, and what is asked of it (EIP-1193).

const found = new Map();

/** Call `offer` as soon as there is a wallet, and again for each that comes. */
export function whenWallet(offer) {
  window.addEventListener("eip6963:announceProvider", (event) => {
    found.set(event.detail.info.uuid, event.detail.provider);
    offer();
  });
  window.dispatchEvent(new Event("eip6963:requestProvider"));
  if (window.ethereum) offer();
}

const provider = () => found.values().next().value || window.ethereum;
const hex = (text) => "0x" + Array.from(new TextEncoder().encode(text), (one) => one.toString(16).padStart(2, "0")).join("");

/** The account the person opens to this page; the one at `address` where one is given. */
export async function account(address) {
  const open = await provider().request({ method: "eth_requestAccounts" });
  const chosen = address ? open.find((one) => one.toLowerCase() === address.toLowerCase()) : open[0];
  if (!chosen) throw new Error(`Open the account ${address} in your wallet: it is the one registered here.`);
  return chosen;
}

/** Its signature over a text (ERC-191). */
export function signedText(from, text) {
  return provider().request({ method: "personal_sign", params: [hex(text), from] });
}

/** Its signature over typed data (EIP-712), which the wallet shows. Wallets sign for the chain they are on alone. */
export async function signedData(from, typed) {
  const chain = "0x" + Number(typed.domain.chainId).toString(16);
  if (Number(await provider().request({ method: "eth_chainId" })) !== Number(chain)) {
    try {
      await provider().request({ method: "wallet_switchEthereumChain", params: [{ chainId: chain }] });
    } catch (error) {
      if (error.code === 4001) throw error;
      throw new Error(`Your wallet must know the hospitals' chain, number ${typed.domain.chainId}: add it there first.`);
    }
  }
  return provider().request({ method: "eth_signTypedData_v4", params: [from, JSON.stringify(typed)] });
}
