import bcrypt from "bcryptjs";

const COST = Number(process.env.BCRYPT_COST ?? 10);
// Compared with when there is nobody, so that an unknown address takes as long as a wrong password.
const NOBODY = bcrypt.hashSync("nobody has this password", COST);

export const hashPassword = (password: string) => bcrypt.hash(password, COST);

export async function passwordMatches(password: unknown, hash: string | null | undefined): Promise<boolean> {
  const same = await bcrypt.compare(typeof password === "string" ? password : "", hash || NOBODY);
  return same && Boolean(hash);
}
