// Wallets: Sign-In with Ethereum (EIP-4361), and registering a wallet as one's own.
import { ask, run } from "./ask.js";
import { account, signedText, whenWallet } from "./ethereum.js";

async function signed(messagePath, body) {
  const address = await account();
  const { message } = await ask(messagePath, { ...body, address });
  return { ...body, message, signature: await signedText(address, message) };
}

whenWallet(() => {
  const other = document.getElementById("other-ways");
  run(document.getElementById("wallet-sign-in"), document.getElementById("other-ways-text"), async () => (
    await ask("/portal/wallet/sign-in", await signed(
      "/portal/wallet/message", { csrf: other.dataset.csrf, next: other.dataset.next }))).next);
  const section = document.getElementById("wallet-section");
  run(document.getElementById("wallet-add"), document.getElementById("wallet-text"), async () => (
    await ask("/portal/account/wallet", await signed(
      "/portal/account/wallet/message", { csrf: section.dataset.csrf }))).next);
});
