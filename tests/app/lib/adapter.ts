// What next-auth needs to know people who come through Google, for either pair of tables. Sessions are tokens, so none is stored.
import type { Adapter, AdapterAccount, AdapterUser } from "next-auth/adapters";

type Person = { id: string; email: string; name: string | null; image: string | null; emailVerified: Date | null };
type People = {
  find(id: string): Promise<Person | null>;
  findByEmail(email: string): Promise<Person | null>;
  findByAccount(provider: string, providerAccountId: string): Promise<Person | null>;
  create(person: Omit<Person, "id">): Promise<Person>;
  link(account: Record<string, unknown>): Promise<unknown>;
};

const COLUMNS = ["userId", "type", "provider", "providerAccountId", "refresh_token", "access_token", "expires_at", "token_type", "scope", "id_token"];

const known = (person: Person | null): AdapterUser | null => person && { ...person };

export function adapterFor(people: People): Adapter {
  return {
    getUser: async (id) => known(await people.find(id)),
    getUserByEmail: async (email) => known(await people.findByEmail(email)),
    getUserByAccount: async ({ provider, providerAccountId }) => known(await people.findByAccount(provider, providerAccountId)),
    createUser: async (user) =>
      known(await people.create({ email: user.email, name: user.name ?? null, image: user.image ?? null, emailVerified: user.emailVerified }))!,
    updateUser: async (user) => known(await people.find(user.id))!,
    linkAccount: async (account: AdapterAccount) => {
      await people.link(Object.fromEntries(COLUMNS.filter((column) => account[column] !== undefined).map((column) => [column, account[column]])));
    },
  };
}
