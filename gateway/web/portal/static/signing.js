// Signing what is permitted or ended: the server says what, a wallet or a passkey signs it, the server checks it.
import { ask, run } from "./ask.js";
import { possible, used } from "./credentials.js";
import { account, signedData, whenWallet } from "./ethereum.js";

async function byWallet(step, button) {
  const { csrf, version } = step.dataset;
  const from = await account(button.dataset.account);
  const typed = await ask(step.dataset.shown, { csrf, kind: "wallet", version });
  return { csrf, kind: "wallet", signature: await signedData(from, typed) };
}

async function byPasskey(step, button) {
  const { csrf, version } = step.dataset;
  const { publicKey } = await ask(step.dataset.shown, { csrf, version, kind: "passkey",
    credential: button.dataset.credential });
  const { rawId, response } = await used(publicKey);
  return { csrf, kind: "passkey", credential: rawId, authenticatorData: response.authenticatorData,
    clientDataJSON: response.clientDataJSON, signature: response.signature };
}

function offer(step, button, sign) {
  run(button, step.querySelector("[role=alert]"), async () => {
    const { next } = await ask(step.dataset.signed, await sign(step, button));
    const form = step.dataset.form && document.getElementById(step.dataset.form);
    if (!form) return next;
    form.requestSubmit(form.querySelector("[data-signed]"));
    return "";
  });
}

for (const step of document.querySelectorAll("[data-signed][data-shown]")) {
  if (possible) {
    for (const button of step.querySelectorAll("[data-credential]")) offer(step, button, byPasskey);
  }
  const wallet = step.querySelector("[data-account]");
  if (wallet) whenWallet(() => offer(step, wallet, byWallet));
}
