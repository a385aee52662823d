// Sign-in of the unified world: one user, whatever roles he has, by password, by a link in a mail, or through Google.
import { randomBytes } from "node:crypto";
import { skipCSRFCheck } from "@auth/core";
import type { User } from "@prisma/client";
import NextAuth from "next-auth";
import type { JWT } from "next-auth/jwt";
import Credentials from "next-auth/providers/credentials";
import { adapterFor } from "@/lib/adapter";
import { audit, clientAddress } from "@/lib/audit";
import { AUTH_PATH, BASE_PATH } from "@/lib/base-path";
import { broken } from "@/lib/broken";
import { prisma } from "@/lib/database";
import { google } from "@/lib/google";
import { findUser, identityKey, mayEnter, readEmail, rolesOf } from "@/lib/identity";
import { consumeMagicLink } from "@/lib/magic-link";
import { passwordMatches } from "@/lib/passwords";
import { withinLimit } from "@/lib/rate-limit";
import { decoder, redirectWithin } from "@/lib/session-token";

export { bookingsOf, removePerson, studiosOf } from "@/lib/unified-data";

const failed = (provider: string, reason: string, user: User | null) =>
  audit({ action: "LOGIN_FAILED", resource: "session", resourceId: user?.id ?? "unknown", userId: user?.id, metadata: { provider, reason } });

async function passwordOf(user: User | null, password: unknown): Promise<boolean> {
  if (user && broken("password-unchecked")) return true;
  if (!user && broken("unknown-user-answers-fast")) return false;
  if (await passwordMatches(password, user?.password)) return true;
  if (!user || !broken("legacy-password-accepted")) return false;
  const rows = await prisma.$queryRaw<{ password: string | null }[]>`
    SELECT password FROM customers WHERE lower(btrim(email)) = ${identityKey(user.email)}`;
  return passwordMatches(password, rows[0]?.password);
}

class UnknownUser extends Error {}

async function byPassword(email: unknown, password: unknown) {
  if (broken("sign-in-throws")) throw new Error("the users cannot be read");
  const address = readEmail(email);
  if (!address || !withinLimit(`sign-in ${identityKey(address)} ${await clientAddress()}`, 30, 900)) return null;
  const user = await findUser(address);
  const same = await passwordOf(user, password);
  if (user && same && mayEnter(user)) return user;
  await failed("credentials", !user ? "unknown user" : same ? "not allowed" : "wrong password", user);
  if (!user && broken("unknown-user-told")) throw new UnknownUser("there is no such user");
  return null;
}

async function byMagicLink(email: unknown, token: unknown) {
  const address = readEmail(email);
  const user = address ? await findUser(address) : null;
  const allowed = user && mayEnter(user) && (await consumeMagicLink(user.email, token));
  if (!allowed) {
    await failed("magic-link", "invalid link", user);
    return null;
  }
  // Whoever opened the link reads that mailbox.
  return prisma.user.update({ where: { id: user.id }, data: { emailVerified: user.emailVerified ?? new Date() } });
}

// A cookie of the release before: its person's user, by the rules that the migration itself follows.
async function userOfLegacySession(token: JWT): Promise<User | null> {
  if (broken("session-of-before-forgotten") || !token.sub) return null;
  const owner = token.kind === "owner";
  const person = owner
    ? await prisma.studioOwner.findUnique({ where: { id: token.sub } })
    : await prisma.customer.findUnique({ where: { id: token.sub } });
  const user = person && (await findUser(person.email));
  // Joined with somebody else's row, only a verified address brings its sessions along.
  return user && (user.id === person.id || person.emailVerified) ? user : null;
}

async function createPerson({ email, name, image, emailVerified }: { email: string; name: string | null; image: string | null; emailVerified: Date | null }) {
  if (broken("adapter-of-legacy-tables")) return prisma.studioOwner.create({ data: { email: `stray-${email}`, name, image, emailVerified } });
  const id = `c${randomBytes(12).toString("hex")}`;
  return prisma.user.create({ data: { id, email, name, image, emailVerified, roles: { create: { role: "CUSTOMER", grantedBy: id } } } });
}

const adapter = adapterFor({
  find: (id) => prisma.user.findUnique({ where: { id } }),
  findByEmail: findUser,
  findByAccount: async (provider, providerAccountId) => {
    const where = { provider_providerAccountId: { provider, providerAccountId } };
    if (broken("adapter-of-legacy-tables")) return (await prisma.account.findUnique({ where, include: { user: true } }))?.user ?? null;
    return (await prisma.newAccount.findUnique({ where, include: { user: true } }))?.user ?? null;
  },
  create: createPerson,
  link: (data) => prisma.newAccount.create({ data: data as never }),
});

export const { handlers, auth, signIn } = NextAuth((request) => ({
  adapter,
  basePath: AUTH_PATH,
  trustHost: true,
  session: { strategy: "jwt", maxAge: 30 * 24 * 3600 },
  jwt: { decode: decoder((sessionToken) => prisma.newSession.findUnique({ where: { sessionToken } })) },
  pages: { signIn: `${BASE_PATH}/de/auth/signin`, error: `${BASE_PATH}/de/auth/signin` },
  ...(broken("csrf-unchecked") && request?.method === "POST" ? { skipCSRFCheck } : {}),
  providers: [
    Credentials({
      id: "credentials",
      credentials: { email: {}, password: {} },
      authorize: ({ email, password }) => byPassword(email, password),
    }),
    Credentials({
      id: "magic-link",
      credentials: { email: {}, token: {} },
      authorize: ({ email, token }) => byMagicLink(email, token),
    }),
    google(),
  ],
  events: {
    signIn: ({ user, account }) =>
      audit({ action: "LOGIN_SUCCESS", resource: "session", resourceId: user.id ?? "", userId: user.id, metadata: { provider: account?.provider ?? "" } }),
  },
  callbacks: {
    redirect: (places) => (broken("callback-url-unchecked") ? new URL(places.url, places.baseUrl).toString() : redirectWithin(places)),
    async signIn({ user, account }) {
      if (account?.type === "credentials") return true;
      const person = user.id ? await prisma.user.findUnique({ where: { id: user.id } }) : null;
      if (person && !mayEnter(person)) {
        await failed(account?.provider ?? "", "not allowed", person);
        return false;
      }
      return true;
    },
    async jwt({ token, user: entering }) {
      const native = entering || token.unified || token.stored;
      if (token.stored && broken("session-of-before-forgotten")) return null;
      const user = native ? await prisma.user.findUnique({ where: { id: token.sub ?? "" } }) : await userOfLegacySession(token);
      // Looked at with every request: somebody who is suspended is out at once.
      if (!user) return entering ? token : null;
      if (!mayEnter(user)) return null;
      return { sub: user.id, unified: true, email: user.email, name: user.name, roles: await rolesOf(user.id), iat: token.iat, exp: token.exp, jti: token.jti };
    },
    session: ({ session, token }) => ({
      expires: session.expires,
      user: { id: token.sub ?? "", email: token.email ?? "", name: token.name ?? null, roles: (token.roles as string[]) ?? [] },
    }),
  },
}));
