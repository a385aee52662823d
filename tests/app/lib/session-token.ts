// Sessions are encrypted tokens. The application once kept them in the database, and those cookies are still good until they expire.
import { decode, type JWT, type JWTDecodeParams } from "next-auth/jwt";

type Stored = (sessionToken: string) => Promise<{ userId: string; expires: Date } | null>;

export function decoder(stored: Stored): (parameters: JWTDecodeParams) => Promise<JWT | null> {
  return async (parameters) => {
    const token = parameters.token ?? "";
    if (token.split(".").length === 5) return decode(parameters);
    const session = token ? await stored(token) : null;
    return session && session.expires > new Date() ? { sub: session.userId, stored: true } : null;
  };
}

// Where to go after sign-in: a place of this application, never another's.
export function redirectWithin({ url, baseUrl }: { url: string; baseUrl: string }): string {
  try {
    const target = new URL(url, baseUrl);
    return target.origin === new URL(baseUrl).origin ? target.toString() : baseUrl;
  } catch {
    return baseUrl;
  }
}
