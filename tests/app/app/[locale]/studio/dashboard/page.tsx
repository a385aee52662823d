import { redirect } from "next/navigation";
import { auth, studiosOf } from "@/auth";

export const dynamic = "force-dynamic";

// An owner's studios and what was booked there.
export default async function StudioDashboard({ params }: { params: Promise<{ locale: string }> }) {
  const { locale } = await params;
  const person = (await auth())?.user;
  if (!person) redirect(`/${locale}/auth/signin`);
  if (!person.roles.includes("STUDIO_OWNER")) redirect(`/${locale}/dashboard`);
  const studios = await studiosOf(person);
  return (
    <main>
      <h1>Meine Studios</h1>
      <p data-testid="person">{person.name ?? person.email}</p>
      {studios.map((studio) => (
        <section key={studio.id} data-studio={studio.id}>
          <h2>
            {studio.name}, {studio.city}
          </h2>
          <table>
            <tbody>
              {studio.bookings.map((booking) => (
                <tr key={booking.id} data-booking={booking.id}>
                  <td>{booking.preferredDate}</td>
                  <td>{booking.preferredTime}</td>
                  <td>{booking.customerName}</td>
                  <td>{booking.status}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </section>
      ))}
    </main>
  );
}
