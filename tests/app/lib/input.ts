// What a booking form sends, checked.
import { readEmail } from "@/lib/identity";

const text = (value: unknown, longest: number) => (typeof value === "string" && value.trim() && value.length <= longest ? value.trim() : null);

export function readBooking(body: Record<string, unknown>) {
  const email = readEmail(body.customerEmail);
  const name = text(body.customerName, 200);
  const studioId = text(body.studioId, 100);
  const preferredDate = text(body.preferredDate, 10);
  const preferredTime = text(body.preferredTime, 20);
  if (!email || !name || !studioId || !preferredDate || !preferredTime || !/^\d{4}-\d\d-\d\d$/.test(preferredDate)) return null;
  const consent = body.explicitHealthConsent === true;
  return {
    studioId,
    serviceId: text(body.serviceId, 100),
    customerName: name,
    customerEmail: email,
    customerPhone: text(body.customerPhone, 50) ?? "",
    preferredDate,
    preferredTime,
    message: text(body.message, 2000),
    explicitHealthConsent: consent,
    healthConsentGivenAt: consent ? new Date() : null,
    healthConsentText: consent ? "Ich willige in die Verarbeitung meiner Gesundheitsdaten ein (Art. 9 Abs. 2 lit. a DSGVO)." : null,
  };
}

export function readStudio(body: Record<string, unknown>) {
  const [name, address, city, phone] = [text(body.name, 200), text(body.address, 200), text(body.city, 100), text(body.phone, 50)];
  const email = readEmail(body.email);
  if (!name || !address || !city || !phone || !email) return null;
  return { name, address, city, phone, email, description: text(body.description, 5000), postalCode: text(body.postalCode, 10) };
}

export function readRegistration(body: Record<string, unknown>) {
  const [name, email] = [text(body.name, 200), readEmail(body.email)];
  const password = typeof body.password === "string" && body.password.length >= 10 && body.password.length <= 72 ? body.password : null;
  return name && email && password ? { name, email, password, phone: text(body.phone, 50) } : null;
}

// The body of a request as an object; anything else is an empty one.
export async function readBody(request: Request): Promise<Record<string, unknown>> {
  const body: unknown = await request.json().catch(() => null);
  return body && typeof body === "object" && !Array.isArray(body) ? (body as Record<string, unknown>) : {};
}
