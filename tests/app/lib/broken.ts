// Mistakes that applications make, one switch each: BROKEN=<name> in the environment of a test build makes one.
// Outside a test build the switches do nothing.
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
  return process.env.TEST_BUILD === "1" && process.env.BROKEN === name;
}
