import Google from "next-auth/providers/google";

// GOOGLE_ISSUER points to a stand-in where there is one.
export const google = () =>
  Google({
    clientId: process.env.GOOGLE_CLIENT_ID ?? "",
    clientSecret: process.env.GOOGLE_CLIENT_SECRET ?? "",
    checks: ["pkce", "state"],
    ...(process.env.GOOGLE_ISSUER ? { issuer: process.env.GOOGLE_ISSUER } : {}),
  });
