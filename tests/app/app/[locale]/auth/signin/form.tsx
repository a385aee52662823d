"use client";

import { type FormEvent, useEffect, useState } from "react";

type Properties = { basePath: string; locale: string; callbackUrl: string };
type Providers = Record<string, { id: string; name: string; type: string }>;

const NAMES: Record<string, string> = { "studio-credentials": "Als Studio anmelden", "customer-credentials": "Als Kundin oder Kunde anmelden" };

export function SignInForm({ basePath, locale, callbackUrl }: Properties) {
  const [providers, setProviders] = useState<Providers>({});
  const [message, setMessage] = useState("");

  useEffect(() => {
    fetch(`${basePath}/api/auth/providers`).then(async (answer) => setProviders(await answer.json()));
  }, [basePath]);

  async function post(action: string, fields: Record<string, string>) {
    const { csrfToken } = await (await fetch(`${basePath}/api/auth/csrf`)).json();
    const answer = await fetch(`${basePath}/api/auth/${action}`, {
      method: "POST",
      headers: { "X-Auth-Return-Redirect": "1" },
      body: new URLSearchParams({ ...fields, csrfToken, callbackUrl }),
    });
    const { url } = await answer.json();
    if (new URL(url).searchParams.get("error")) setMessage("E-Mail oder Passwort stimmt nicht.");
    else window.location.href = url;
  }

  async function submit(event: FormEvent<HTMLFormElement>) {
    event.preventDefault();
    const data = new FormData(event.currentTarget);
    const provider = (event.nativeEvent as SubmitEvent).submitter?.getAttribute("value") ?? "";
    const email = String(data.get("email"));
    if (provider !== "magic-link") return post(`callback/${provider}`, { email, password: String(data.get("password")) });
    await fetch(`${basePath}/${locale}/api/auth/magic-link/request`, { method: "POST", body: JSON.stringify({ email }) });
    setMessage("Wenn es ein Konto gibt, ist ein Link unterwegs.");
  }

  const offered = Object.values(providers).filter(({ type, id }) => type === "credentials" && id !== "magic-link");
  return (
    <form onSubmit={submit} style={{ display: "grid", gap: "0.75rem", maxWidth: "24rem" }}>
      <input name="email" type="email" placeholder="E-Mail" autoComplete="email" required />
      <input name="password" type="password" placeholder="Passwort" autoComplete="current-password" />
      {offered.map(({ id }) => (
        <button key={id} value={id}>
          {NAMES[id] ?? "Anmelden"}
        </button>
      ))}
      {providers["magic-link"] && <button value="magic-link">Link zusenden</button>}
      {providers.google && (
        <button type="button" onClick={() => post("signin/google", {})}>
          Mit Google anmelden
        </button>
      )}
      {message && <p role="status">{message}</p>}
    </form>
  );
}
