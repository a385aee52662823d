import nodemailer from "nodemailer";
import { broken } from "@/lib/broken";

type Mail = { to: string; subject: string; text: string };

// SMTP_URL names the mail service. Without one, development mode writes the mail into the log.
export async function sendMail(mail: Mail): Promise<void> {
  if (broken("magic-link-not-sent")) return;
  const url = process.env.SMTP_URL;
  if (!url) {
    if (process.env.MAIL_MODE !== "log") throw new Error("no mail service: set SMTP_URL");
    console.info(`[mail] to ${mail.to}: ${mail.subject}\n${mail.text}`);
    return;
  }
  const transport = nodemailer.createTransport(url, { connectionTimeout: 5000 });
  try {
    await transport.sendMail({ from: process.env.MAIL_FROM ?? "termine@massage.example", ...mail });
  } finally {
    transport.close();
  }
}
