\set booking random(1, :bookings)
UPDATE bookings SET status = CASE status WHEN 'CONFIRMED' THEN 'CANCELLED' ELSE 'CONFIRMED' END::"BookingStatus", "updatedAt" = now()
WHERE id = 'cm' || lpad(to_hex(:booking::bigint), 8, '0') || left(md5('booking:' || :booking), 15);
