BEGIN;
SELECT gen_random_uuid() AS person \gset
INSERT INTO users (id, name, email, password, "primaryRole", "updatedAt")
VALUES (:person, 'Renée Smith', 'neu.' || :person || '@mail.example', repeat('x', 60), 'CUSTOMER', now());
INSERT INTO user_role_assignments (id, "userId", role) VALUES (gen_random_uuid(), :person, 'CUSTOMER');
END;
