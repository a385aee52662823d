\set studio random(1, :studios)
BEGIN;
SELECT gen_random_uuid() AS guest \gset
INSERT INTO users (id, name, email, "primaryRole", "updatedAt") VALUES (:guest, 'Ein Gast', 'gast.' || :guest || '@mail.example', 'CUSTOMER', now());
INSERT INTO user_role_assignments (id, "userId", role) VALUES (gen_random_uuid(), :guest, 'CUSTOMER');
INSERT INTO new_bookings (id, "studioId", "customerId", "customerName", "customerEmail", "customerPhone", "preferredDate", "preferredTime", "updatedAt")
VALUES (gen_random_uuid(), 'cm' || lpad(to_hex(:studio::bigint), 8, '0') || left(md5('studio:' || :studio), 15),
        :guest, 'Ein Gast', 'gast.' || :guest || '@mail.example', '', '2026-01-31', 'abends', now());
END;
