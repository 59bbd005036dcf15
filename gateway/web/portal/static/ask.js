// What the pages' scripts share: asking this server, and a button whose work may fail in words.

/** POST `body` as JSON to an own path; the answer's JSON. Throws what the server says of a refusal. */
export async function ask(path, body) {
  const answer = await fetch(path, {
    method: "POST", credentials: "same-origin", redirect: "error", body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", "Accept": "application/json" },
  });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

function words(error) {
  if (error.code === 4001) return "The wallet did not sign."; // EIP-1193: the person said no
  if (error.name === "NotAllowedError") return "No passkey was used.";
  return error.message || "That did not work.";
}

/** Show `button`, once; pressed, it does `work`, goes to the path that gives, if any, and tells in `place` what failed. */
export function run(button, place, work) {
  if (!button || button.dataset.ready) return;
  button.dataset.ready = "yes";
  button.hidden = false;
  button.addEventListener("click", async () => {
    place.textContent = "";
    button.disabled = true;
    try {
      const next = await work();
      if (next) location.assign(next);
    } catch (error) {
      place.textContent = words(error);
    }
    button.disabled = false;
  });
}
