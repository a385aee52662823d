import { redirect } from "next/navigation";
import { auth, bookingsOf } from "@/auth";

export const dynamic = "force-dynamic";

// What somebody has booked himself.
export default async function Dashboard({ params }: { params: Promise<{ locale: string }> }) {
  const { locale } = await params;
  const person = (await auth())?.user;
  if (!person) redirect(`/${locale}/auth/signin`);
  const bookings = await bookingsOf(person);
  return (
    <main>
      <h1>Meine Buchungen</h1>
      <p data-testid="person">{person.name ?? person.email}</p>
      <table>
        <tbody>
          {bookings.map((booking) => (
            <tr key={booking.id} data-booking={booking.id}>
              <td>{booking.preferredDate}</td>
              <td>{booking.preferredTime}</td>
              <td>{booking.studio.name}</td>
              <td>{booking.status}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </main>
  );
}
