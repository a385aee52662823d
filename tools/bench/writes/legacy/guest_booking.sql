\set studio random(1, :studios)
INSERT INTO bookings (id, "studioId", "customerName", "customerEmail", "customerPhone", "preferredDate", "preferredTime", "updatedAt")
VALUES (gen_random_uuid(), 'cm' || lpad(to_hex(:studio::bigint), 8, '0') || left(md5('studio:' || :studio), 15),
        'Ein Gast', 'gast.' || gen_random_uuid() || '@mail.example', '', '2026-01-31', 'abends', now());
