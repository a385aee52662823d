// Sign-in of the legacy world: studio owners and customers are kept apart, each with a provider of their own.
import NextAuth from "next-auth";
import Credentials from "next-auth/providers/credentials";
import { adapterFor } from "@/lib/adapter";
import { AUTH_PATH, BASE_PATH } from "@/lib/base-path";
import { prisma } from "@/lib/database";
import { google } from "@/lib/google";
import { identityKey, readEmail } from "@/lib/identity";
import { passwordMatches } from "@/lib/passwords";
import { withinLimit } from "@/lib/rate-limit";
import { decoder, redirectWithin } from "@/lib/session-token";

export { bookingsOf, removePerson, studiosOf } from "@/lib/legacy-data";

const ROLES = { owner: "STUDIO_OWNER", customer: "CUSTOMER" } as const;
type Kind = keyof typeof ROLES;

const findPerson = (kind: Kind, where: { id: string } | { email: string }) =>
  kind === "owner" ? prisma.studioOwner.findUnique({ where }) : prisma.customer.findUnique({ where });

// A session of the unified release, after going back: the same person under the legacy tables.
async function personOfUser(id: string, email: string, roles: unknown): Promise<{ id: string; kind: Kind } | null> {
  const kinds: Kind[] = Array.isArray(roles) && roles.includes(ROLES.owner) ? ["owner", "customer"] : ["customer"];
  for (const kind of kinds) {
    const person = (await findPerson(kind, { id })) ?? (await findPerson(kind, { email }));
    if (person && identityKey(person.email) === identityKey(email)) return { id: person.id, kind };
  }
  return null;
}

const passwordProvider = (kind: Kind, id: string) =>
  Credentials({
    id,
    credentials: { email: {}, password: {} },
    async authorize({ email, password }) {
      const address = readEmail(email);
      if (!address || !withinLimit(`sign-in ${identityKey(address)}`, 30, 900)) return null;
      const person = await findPerson(kind, { email: address });
      if (!(await passwordMatches(password, person?.password)) || !person) return null;
      return { id: person.id, email: person.email, name: person.name, kind };
    },
  });

const adapter = adapterFor({
  find: (id) => prisma.studioOwner.findUnique({ where: { id } }),
  findByEmail: (email) => prisma.studioOwner.findUnique({ where: { email } }),
  findByAccount: async (provider, providerAccountId) =>
    (await prisma.account.findUnique({ where: { provider_providerAccountId: { provider, providerAccountId } }, include: { user: true } }))?.user ?? null,
  create: (data) => prisma.studioOwner.create({ data }),
  link: (data) => prisma.account.create({ data: data as never }),
});

export const { handlers, auth, signIn } = NextAuth({
  adapter,
  basePath: AUTH_PATH,
  trustHost: true,
  session: { strategy: "jwt", maxAge: 30 * 24 * 3600 },
  jwt: { decode: decoder((sessionToken) => prisma.session.findUnique({ where: { sessionToken } })) },
  pages: { signIn: `${BASE_PATH}/de/auth/signin`, error: `${BASE_PATH}/de/auth/signin` },
  providers: [passwordProvider("owner", "studio-credentials"), passwordProvider("customer", "customer-credentials"), google()],
  callbacks: {
    redirect: redirectWithin,
    async jwt({ token, user }) {
      if (user) token.kind = (user as { kind?: Kind }).kind ?? "owner";
      if (token.unified) {
        const person = await personOfUser(token.sub ?? "", token.email ?? "", token.roles);
        if (!person) return null;
        Object.assign(token, { sub: person.id, kind: person.kind, unified: undefined });
      }
      token.kind ??= "owner";
      const person = await findPerson(token.kind as Kind, { id: token.sub ?? "" });
      return person && { ...token, stored: undefined, email: person.email, name: person.name, roles: [ROLES[token.kind as Kind]] };
    },
    session: ({ session, token }) => ({
      expires: session.expires,
      user: { id: token.sub ?? "", email: token.email ?? "", name: token.name ?? null, roles: token.roles as string[] },
    }),
  },
});
