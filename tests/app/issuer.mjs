// A stand-in for Google in tests: a certified OpenID provider on loopback, where anybody may sign in under any name.
// node issuer.mjs <port> <redirect URI>. The name typed into its form becomes the subject; what has an @ is his e-mail, too.
import Provider from "oidc-provider";

const [port, redirectUri] = process.argv.slice(2);
const issuer = `http://localhost:${port}`;

const provider = new Provider(issuer, {
  clients: [
    {
      client_id: process.env.GOOGLE_CLIENT_ID,
      client_secret: process.env.GOOGLE_CLIENT_SECRET,
      redirect_uris: [redirectUri],
      token_endpoint_auth_method: "client_secret_basic",
    },
  ],
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name"] },
  conformIdTokenClaims: false,
  cookies: { keys: [process.env.ISSUER_SECRET] },
  findAccount: (_context, id) => ({
    accountId: id,
    claims: async () => ({ sub: id, name: "Test", email: id.includes("@") ? id : `${id}@issuer.invalid`, email_verified: true }),
  }),
  pkce: { required: () => true },
});

const server = provider.listen(Number(port), "127.0.0.1");
process.on("SIGTERM", () => server.close(() => process.exit(0)));
