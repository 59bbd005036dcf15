// Wallets: Sign-In with Ethereum (EIP-4361) through a wallet that announces itself (EIP-6963) or stands in the page.
"use strict";

(() => {
  const found = new Map();

  async function ask(path, body) {
    const answer = await fetch(path, {
      method: "POST", credentials: "same-origin", redirect: "error", body: JSON.stringify(body),
      headers: { "Content-Type": "application/json", "Accept": "application/json" },
    });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    return said;
  }

  const hex = (text) => "0x" + Array.from(new TextEncoder().encode(text), (one) => one.toString(16).padStart(2, "0")).join("");

  async function signed(messagePath, body) {
    const provider = found.values().next().value || window.ethereum;
    const [account] = await provider.request({ method: "eth_requestAccounts" });
    const { message } = await ask(messagePath, { ...body, address: account });
    const signature = await provider.request({ method: "personal_sign", params: [hex(message), account] });
    return { ...body, message, signature };
  }

  function run(id, place, work) {
    const button = document.getElementById(id);
    if (!button || button.dataset.ready) return;
    button.dataset.ready = "yes";
    button.hidden = false;
    button.addEventListener("click", async () => {
      const shown = document.getElementById(place);
      shown.textContent = "";
      button.disabled = true;
      try {
        location.assign((await work()).next);
      } catch (error) {
        shown.textContent = error.code === 4001 ? "The wallet did not sign." : error.message;
      }
      button.disabled = false;
    });
  }

  function offer() {
    const other = document.getElementById("other-ways");
    run("wallet-sign-in", "other-ways-text", async () => ask("/portal/wallet/sign-in",
      await signed("/portal/wallet/message", { csrf: other.dataset.csrf, next: other.dataset.next })));
    const section = document.getElementById("wallet-section");
    run("wallet-add", "wallet-text", async () => ask("/portal/account/wallet",
      await signed("/portal/account/wallet/message", { csrf: section.dataset.csrf })));
  }

  window.addEventListener("eip6963:announceProvider", (event) => {
    found.set(event.detail.info.uuid, event.detail.provider);
    offer();
  });
  window.dispatchEvent(new Event("eip6963:requestProvider"));
  if (window.ethereum) offer();
})();
