import { AuthError } from "next-auth";
import { type NextRequest, NextResponse } from "next/server";
import { signIn } from "@/auth";
import { publicUrl } from "@/lib/base-path";

// Where the link in the mail leads: signs in with its token, or back to the sign-in page.
export async function GET(request: NextRequest, { params }: { params: Promise<{ locale: string }> }) {
  const { locale } = await params;
  const { token, email } = Object.fromEntries(request.nextUrl.searchParams);
  const target = publicUrl(`/${locale}/dashboard`);
  try {
    await signIn("magic-link", { token: token ?? "", email: email ?? "", redirect: false, redirectTo: target });
  } catch (error) {
    if (!(error instanceof AuthError)) throw error;
    return NextResponse.redirect(publicUrl(`/${locale}/auth/signin?error=MagicLink`));
  }
  return NextResponse.redirect(target);
}
