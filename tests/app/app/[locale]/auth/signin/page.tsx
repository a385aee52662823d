import { BASE_PATH } from "@/lib/base-path";
import { SignInForm } from "./form";

export const dynamic = "force-dynamic";

type Properties = { params: Promise<{ locale: string }>; searchParams: Promise<Record<string, string | undefined>> };

export default async function SignInPage({ params, searchParams }: Properties) {
  const { locale } = await params;
  const { error, callbackUrl } = await searchParams;
  return (
    <main>
      <h1>Anmelden</h1>
      {error && <p role="alert">Die Anmeldung hat nicht geklappt.</p>}
      <SignInForm basePath={BASE_PATH} locale={locale} callbackUrl={callbackUrl ?? `${BASE_PATH}/${locale}/dashboard`} />
    </main>
  );
}
