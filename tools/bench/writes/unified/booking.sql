\set customer random(:joined + 1, :customers)
\set studio random(1, :studios)
INSERT INTO new_bookings (id, "studioId", "customerId", "customerName", "customerEmail", "customerPhone", "preferredDate", "preferredTime", "updatedAt")
SELECT gen_random_uuid(), 'cm' || lpad(to_hex(:studio::bigint), 8, '0') || left(md5('studio:' || :studio), 15),
       u.id, u.name, u.email, coalesce(u.phone, ''), '2026-01-31', 'abends', now()
FROM users AS u WHERE u.id = 'cm' || lpad(to_hex(:customer::bigint), 8, '0') || left(md5('customer:' || :customer), 15);
