// npm's fhir-kit-client and fhirclient against a running gateway: `node node_clients.mjs BASE TOKEN` prints what they saw.
import { createRequire } from "node:module";
import { Client } from "fhir-kit-client";

const smart = createRequire(import.meta.url)("fhirclient");
const [base, token] = process.argv.slice(2);

async function withFhirKit() {
  const client = new Client({ baseUrl: base, customHeaders: { Authorization: `Bearer ${token}` } });
  const statement = await client.capabilityStatement();
  const made = await client.create({ resourceType: "Patient", body: {
    resourceType: "Patient", name: [{ family: "Kitson" }] } });
  const id = made.id;
  await client.update({ resourceType: "Patient", id, body: { ...made, gender: "other" } });
  await client.patch({ resourceType: "Patient", id, jsonPatch: [{ op: "add", path: "/birthDate", value: "1980-02-29" }] });
  const old = await client.vread({ resourceType: "Patient", id, version: "1" });
  const now = await client.read({ resourceType: "Patient", id });
  const entry = [...Array(25).keys()].map((number) => ({
    resource: { resourceType: "Observation", status: "final", code: { text: `kit ${number}` },
                subject: { reference: `Patient/${id}` } },
    request: { method: "POST", url: "Observation" } }));
  const done = await client.transaction({ body: { resourceType: "Bundle", type: "transaction", entry } });
  let page = await client.search({ resourceType: "Observation", searchParams: { subject: `Patient/${id}`, _count: 10 } });
  let seen = 0;
  while (page) {
    seen += (page.entry || []).length;
    page = await client.nextPage({ bundle: page });
  }
  const inCompartment = await client.compartmentSearch({
    resourceType: "Observation", compartment: { resourceType: "Patient", id }, searchParams: { _count: 50 } });
  const history = await client.history({ resourceType: "Patient", id });
  const everything = await client.operation({ resourceType: "Patient", id, name: "everything", method: "get" });
  return { fhirVersion: statement.fhirVersion, version: now.meta.versionId, birthDate: now.birthDate,
           old: old.birthDate ?? null, answers: done.entry.map((one) => one.response.status.slice(0, 3)), seen,
           inCompartment: inCompartment.entry.length, history: history.entry.length,
           everything: (everything.entry || []).length };
}

async function withFhirclient() {
  const client = smart({ headers: {}, url: "/" }, {}, {}).client({
    serverUrl: base, tokenResponse: { access_token: token } });
  const patient = await client.create({ resourceType: "Patient", name: [{ family: "Smartson" }] });
  await client.create({ resourceType: "Observation", status: "final", code: { text: "one" },
                        subject: { reference: `Patient/${patient.id}` } });
  const read = await client.request(`Patient/${patient.id}`);
  const found = await client.request(`Observation?patient=${patient.id}`, {
    flat: true, pageLimit: 0, resolveReferences: "subject" });
  const patched = await client.patch(`Patient/${patient.id}`, [{ op: "add", path: "/active", value: true }]);
  await client.delete(`Observation/${found[0].id}`);
  return { family: read.name[0].family, subject: found[0].subject.name?.[0].family ?? null, active: patched.active };
}

console.log(JSON.stringify({ fhirKit: await withFhirKit(), fhirclient: await withFhirclient() }));
