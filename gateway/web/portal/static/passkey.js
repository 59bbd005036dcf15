// Passkeys: signing in by one, and adding one. Nothing is kept here; the server's options go to the browser as they are.
"use strict";

(() => {
  if (!window.PublicKeyCredential || !navigator.credentials) return;

  const bytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  const text = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer)))
    .replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

  async function ask(path, body) {
    const answer = await fetch(path, {
      method: "POST", credentials: "same-origin", redirect: "error", body: JSON.stringify(body),
      headers: { "Content-Type": "application/json", "Accept": "application/json" },
    });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    return said;
  }

  function json(credential) {
    const response = {};
    for (const name of ["clientDataJSON", "attestationObject", "authenticatorData", "signature", "userHandle"]) {
      if (credential.response[name]) response[name] = text(credential.response[name]);
    }
    return { id: credential.id, rawId: text(credential.rawId), type: credential.type, response,
      clientExtensionResults: {}, authenticatorAttachment: credential.authenticatorAttachment || undefined };
  }

  function run(button, place, work) {
    if (!button) return;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const shown = document.getElementById(place);
      shown.textContent = "";
      button.disabled = true;
      try {
        location.assign(await work());
      } catch (error) {
        shown.textContent = error.name === "NotAllowedError" ? "No passkey was used." : error.message;
      }
      button.disabled = false;
    });
  }

  const other = document.getElementById("other-ways");
  run(document.getElementById("passkey-sign-in"), "other-ways-text", async () => {
    const csrf = other.dataset.csrf;
    const options = await ask("/portal/passkey/options", { csrf });
    const credential = await navigator.credentials.get({ publicKey: { ...options, challenge: bytes(options.challenge),
      allowCredentials: (options.allowCredentials || []).map((one) => ({ ...one, id: bytes(one.id) })) } });
    return (await ask("/portal/passkey/sign-in", { csrf, next: other.dataset.next, credential: json(credential) })).next;
  });

  const adding = document.getElementById("passkey-adding");
  if (adding) adding.hidden = false;
  run(document.getElementById("passkey-add"), "passkey-text", async () => {
    const csrf = document.getElementById("passkey-section").dataset.csrf;
    const options = await ask("/portal/account/passkeys/options", { csrf });
    const credential = await navigator.credentials.create({ publicKey: { ...options,
      challenge: bytes(options.challenge), user: { ...options.user, id: bytes(options.user.id) },
      excludeCredentials: (options.excludeCredentials || []).map((one) => ({ ...one, id: bytes(one.id) })) } });
    const name = document.getElementById("passkey-name").value;
    return (await ask("/portal/account/passkeys", { csrf, name, credential: json(credential) })).next;
  });
})();
