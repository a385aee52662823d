// Mistakes that applications make, one switch each: BROKEN=<name> in the environment of a test build makes one, or the name in
// the file BROKEN_FILE, which may change while the application runs. Outside a test build the switches do nothing.
import { readFileSync } from "node:fs";

export const BREAKAGES = [
  "adapter-of-legacy-tables",
  "bookings-of-everybody",
  "booking-by-id-unchecked",
  "callback-url-unchecked",
  "csrf-unchecked",
  "email-case-sensitive",
  "guest-without-user",
  "guest-user-each-time",
  "guest-with-password",
  "legacy-password-accepted",
  "login-without-audit",
  "magic-link-never-expires",
  "magic-link-not-sent",
  "magic-link-of-another",
  "magic-link-reusable",
  "magic-link-takes-no-token",
  "password-unchecked",
  "registration-without-role",
  "role-unchecked",
  "route-missing",
  "session-of-before-forgotten",
  "sign-in-throws",
  "studio-without-ownership",
  "suspension-ignored",
  "unknown-user-answers-fast",
  "unknown-user-told",
] as const;

export type Breakage = (typeof BREAKAGES)[number];

export function broken(name: Breakage): boolean {
  if (process.env.TEST_BUILD !== "1") return false;
  const file = process.env.BROKEN_FILE;
  return (file ? readFileSync(file, "utf8").trim() : process.env.BROKEN) === name;
}
