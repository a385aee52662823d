import type { ReactNode } from "react";

export const metadata = { title: "Massage-Termine" };

export default function Layout({ children }: { children: ReactNode }) {
  return (
    <html lang="de">
      <body style={{ fontFamily: "system-ui, sans-serif", maxWidth: "56rem", margin: "2rem auto", padding: "0 1rem", lineHeight: 1.5 }}>{children}</body>
    </html>
  );
}
