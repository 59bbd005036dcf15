// Passkeys: signing in by one, and adding one. Nothing is kept here; the server's options go to the browser as they are.
import { ask, run } from "./ask.js";
import { made, possible, used } from "./credentials.js";

if (possible) {
  const other = document.getElementById("other-ways");
  run(document.getElementById("passkey-sign-in"), document.getElementById("other-ways-text"), async () => {
    const csrf = other.dataset.csrf;
    const credential = await used(await ask("/portal/passkey/options", { csrf }));
    return (await ask("/portal/passkey/sign-in", { csrf, next: other.dataset.next, credential })).next;
  });

  const adding = document.getElementById("passkey-adding");
  if (adding) adding.hidden = false;
  run(document.getElementById("passkey-add"), document.getElementById("passkey-text"), async () => {
    const csrf = document.getElementById("passkey-section").dataset.csrf;
    const credential = await made(await ask("/portal/account/passkeys/options", { csrf }));
    const name = document.getElementById("passkey-name").value;
    return (await ask("/portal/account/passkeys", { csrf, name, credential })).next;
  });
}
