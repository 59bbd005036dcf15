// openid-client and oauth4webapi against a running gateway: `oauth_clients.mjs ORIGIN FHIR_BASE`.
//
// A line {"visit": URL, "press": allow|deny} asks for a person to be taken there and is answered by where they came
// back to; {"approve": ID} asks the hospital to let a registration in. The last line is {"seen": …}.

import { createInterface } from "node:readline";
import * as oauth from "oauth4webapi";
import * as openid from "openid-client";

const [origin, base] = process.argv.slice(2);
const issuer = new URL(origin);
const REDIRECT = "https://app.example/after";
const SCOPE = "openid fhirUser launch/patient offline_access patient/Patient.rs";
const insecure = { [oauth.allowInsecureRequests]: true }; // plain http, on loopback
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

async function ask(question) {
  console.log(JSON.stringify(question));
  return JSON.parse((await lines.next()).value);
}

const visit = (url, press = "allow") => ask({ visit: String(url), press });

/** What the server, or the library, has against it; null where nothing. */
async function failure(act) {
  try {
    await act();
  } catch (error) {
    return { kind: error.name, error: error.error ?? error.code ?? null, status: error.status ?? null };
  }
  return null;
}

const app = (client_name, token_endpoint_auth_method) => ({
  client_name, token_endpoint_auth_method, redirect_uris: [REDIRECT], response_types: ["code"],
  grant_types: ["authorization_code", "refresh_token"], scope: SCOPE,
});

async function backend(client_name, alg) {
  const pair = await oauth.generateKeyPair(alg, { extractable: true });
  const kid = `${alg} key`;
  const key = { ...(await crypto.subtle.exportKey("jwk", pair.publicKey)), kid, alg, use: "sig" };
  return {
    key: { key: pair.privateKey, kid },
    metadata: {
      client_name, token_endpoint_auth_method: "private_key_jwt", grant_types: ["client_credentials"],
      response_types: [], scope: "system/Patient.rs", jwks: { keys: [key] },
    },
  };
}

/** An assertion as SMART wants it; `aud`: the token endpoint's URL, where the library would put the issuer. */
const signing = (aud) => ({
  [oauth.modifyAssertion]: (header, claims) => { header.typ = "JWT"; claims.aud = aud; },
});

function altered(callback, name, value) {
  const url = new URL(callback);
  if (value === null) url.searchParams.delete(name);
  else url.searchParams.set(name, value);
  return url;
}

// openid-client: a confidential app, and a backend with RS384

async function withOpenidClient() {
  const config = await openid.dynamicClientRegistration(
    issuer, app("Diary", "client_secret_basic"), openid.ClientSecretBasic(),
    { execute: [openid.allowInsecureRequests, openid.enableNonRepudiationChecks] });
  const launch = async () => {
    const checks = {
      pkceCodeVerifier: openid.randomPKCECodeVerifier(), expectedState: openid.randomState(),
      expectedNonce: openid.randomNonce(), idTokenExpected: true,
    };
    return { checks, url: openid.buildAuthorizationUrl(config, {
      redirect_uri: REDIRECT, scope: SCOPE, aud: base, state: checks.expectedState, nonce: checks.expectedNonce,
      code_challenge: await openid.calculatePKCECodeChallenge(checks.pkceCodeVerifier), code_challenge_method: "S256",
    }) };
  };
  const seen = { waiting: await visit((await launch()).url) };
  await ask({ approve: config.clientMetadata().client_id });

  const { url, checks } = await launch();
  const callback = (await visit(url)).url;
  const taken = (at) => openid.authorizationCodeGrant(config, new URL(at), checks);
  seen.mixedUp = await failure(() => taken(altered(callback, "iss", "https://other.example")));
  seen.unnamed = await failure(() => taken(altered(callback, "iss", null)));
  seen.otherState = await failure(() => taken(altered(callback, "state", "other")));
  const tokens = await taken(callback);
  const claims = tokens.claims();
  const user = await openid.fetchUserInfo(config, tokens.access_token, claims.sub);
  Object.assign(seen, {
    issuer: claims.iss, audience: [claims.aud].flat(), clientId: config.clientMetadata().client_id,
    fhirUser: [claims.fhirUser, user.fhirUser], patient: tokens.patient, scope: tokens.scope,
  });
  const read = await openid.fetchProtectedResource(
    config, tokens.access_token, new URL(`${base}/Patient/${tokens.patient}`), "GET");
  seen.read = (await read.json()).id;
  seen.worth = await openid.tokenIntrospection(config, tokens.access_token);

  const next = await openid.refreshTokenGrant(config, tokens.refresh_token);
  seen.rotated = Boolean(next.refresh_token) && next.refresh_token !== tokens.refresh_token;
  await openid.tokenRevocation(config, next.access_token);
  seen.revoked = (await openid.tokenIntrospection(config, next.access_token)).active;
  seen.reused = await failure(() => openid.refreshTokenGrant(config, tokens.refresh_token));
  seen.afterReuse = await failure(() => openid.refreshTokenGrant(config, next.refresh_token));

  const { key, metadata } = await backend("Registry", "RS384");
  const byKey = openid.PrivateKeyJwt(key, signing(config.serverMetadata().token_endpoint));
  const system = await openid.dynamicClientRegistration(issuer, metadata, byKey, {
    execute: [openid.allowInsecureRequests] });
  seen.unapproved = await failure(() => openid.clientCredentialsGrant(system, { scope: metadata.scope }));
  await ask({ approve: system.clientMetadata().client_id });
  const own = await openid.clientCredentialsGrant(system, { scope: metadata.scope });
  seen.system = [own.scope, "refresh_token" in own];
  return seen;
}

// oauth4webapi: a public app, and a backend with ES384

async function withOauth4webapi() {
  const discovered = async (algorithm) =>
    oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm, ...insecure }));
  const as = await discovered("oidc");
  const registered = async (metadata) => oauth.processDynamicClientRegistrationResponse(
    await oauth.dynamicClientRegistrationRequest(as, metadata, insecure));
  const client = await registered(app("Sketch", "none"));
  await ask({ approve: client.client_id });
  const seen = { sameByRfc8414: JSON.stringify(await discovered("oauth2")) === JSON.stringify(as) };

  const asked = async (press) => {
    const verifier = oauth.generateRandomCodeVerifier(), state = oauth.generateRandomState();
    const nonce = oauth.generateRandomNonce();
    const url = new URL(as.authorization_endpoint);
    url.search = new URLSearchParams({
      client_id: client.client_id, redirect_uri: REDIRECT, response_type: "code", scope: SCOPE, aud: base, state, nonce,
      code_challenge: await oauth.calculatePKCECodeChallenge(verifier), code_challenge_method: "S256",
    });
    return { verifier, state, nonce, callback: new URL((await visit(url, press)).url) };
  };
  const exchanged = async ({ verifier, state, nonce, callback }, with_ = verifier) => {
    const parameters = oauth.validateAuthResponse(as, client, callback, state);
    const response = await oauth.authorizationCodeGrantRequest(
      as, client, oauth.None(), parameters, REDIRECT, with_, insecure);
    const tokens = await oauth.processAuthorizationCodeResponse(
      as, client, response, { expectedNonce: nonce, requireIdToken: true });
    await oauth.validateApplicationLevelSignature(as, response, insecure);
    return tokens;
  };
  const refreshed = async (token) => oauth.processRefreshTokenResponse(
    as, client, await oauth.refreshTokenGrantRequest(as, client, oauth.None(), token, insecure));
  const patients = (token) => oauth.protectedResourceRequest(
    token, "GET", new URL(`${base}/Patient`), undefined, undefined, insecure);

  seen.denied = await failure(async () => exchanged(await asked("deny")));
  seen.otherVerifier = await failure(async () => exchanged(await asked(), oauth.generateRandomCodeVerifier()));
  const first = await asked();
  const tokens = await exchanged(first);
  const { sub, fhirUser } = oauth.getValidatedIdTokenClaims(tokens);
  const user = await oauth.processUserInfoResponse(
    as, client, sub, await oauth.userInfoRequest(as, client, tokens.access_token, insecure));
  seen.fhirUser = [fhirUser, user.fhirUser];
  seen.found = (await (await patients(tokens.access_token)).json()).entry.length;
  seen.codeAgain = await failure(() => exchanged(first));
  seen.afterCodeAgain = await failure(() => patients(tokens.access_token));

  const second = await exchanged(await asked());
  const next = await refreshed(second.refresh_token);
  await oauth.processRevocationResponse(
    await oauth.revocationRequest(as, client, oauth.None(), next.refresh_token, insecure));
  seen.afterRevocation = [
    await failure(() => refreshed(next.refresh_token)), await failure(() => patients(next.access_token))];

  const { key, metadata } = await backend("Ledger", "ES384");
  const system = await registered(metadata);
  await ask({ approve: system.client_id });
  const given = async (options) => oauth.processClientCredentialsResponse(
    as, system, await oauth.clientCredentialsGrantRequest(
      as, system, oauth.PrivateKeyJwt(key, options), { scope: metadata.scope }, insecure));
  const own = await given(signing(as.token_endpoint));
  seen.system = own.scope;
  seen.itsOwn = await failure(() => given());
  seen.elsewhere = await failure(() => given(signing(base)));
  seen.worth = await oauth.processIntrospectionResponse(as, system, await oauth.introspectionRequest(
    as, system, oauth.PrivateKeyJwt(key, signing(as.token_endpoint)), own.access_token, insecure));
  return seen;
}

const seen = { openidClient: await withOpenidClient(), oauth4webapi: await withOauth4webapi() };
console.log(JSON.stringify({ seen }));
process.exit(0);
