-- The unified rows as somebody would write them down who knows his data: one owner and one customer at most to an address,
-- no shared ids, every booking with a customer or a usable address. No policies, no counts, no journal but the map.

CREATE TEMPORARY TABLE customer_user ON COMMIT DROP AS
SELECT c.id AS customer_id, lower(btrim(c.email) COLLATE "C") AS key, coalesce(o.id, c.id) AS user_id, o.id IS NOT NULL AS joined,
       o."emailVerified" IS NOT NULL AS owner_verified
FROM customers AS c
LEFT JOIN studio_owners AS o ON lower(btrim(o.email) COLLATE "C") = lower(btrim(c.email) COLLATE "C");

CREATE TEMPORARY TABLE key_user ON COMMIT DROP AS
SELECT lower(btrim(email) COLLATE "C") AS key, id AS user_id FROM studio_owners
UNION ALL
SELECT key, user_id FROM customer_user WHERE NOT joined;
ANALYZE customer_user, key_user;

CREATE TEMPORARY TABLE guest ON COMMIT DROP AS
SELECT 'c' || left(encode(sha256(convert_to('guest:' || g.key, 'UTF8')), 'hex'), 24) AS user_id, g.*
FROM (
    SELECT lower(btrim(b."customerEmail") COLLATE "C") AS key,
           (array_agg(btrim(b."customerEmail") ORDER BY b."createdAt" DESC, b.id COLLATE "C" DESC))[1] AS email,
           (array_agg(b."customerName" ORDER BY b."createdAt" DESC, b.id COLLATE "C" DESC)
               FILTER (WHERE btrim(b."customerName") <> ''))[1] AS name,
           (array_agg(b."customerPhone" ORDER BY b."createdAt" DESC, b.id COLLATE "C" DESC)
               FILTER (WHERE btrim(b."customerPhone") <> ''))[1] AS phone,
           min(b."createdAt") AS created, max(b."updatedAt") AS updated
    FROM bookings AS b
    LEFT JOIN key_user AS k ON k.key = lower(btrim(b."customerEmail") COLLATE "C")
    WHERE b."customerId" IS NULL AND k.key IS NULL
    GROUP BY 1
) AS g;
INSERT INTO key_user SELECT key, user_id FROM guest;

CREATE TEMPORARY VIEW expected_users AS
SELECT o.id, o.email, least(o."emailVerified", c."emailVerified") AS "emailVerified",
       CASE WHEN c.id IS NULL OR (o."emailVerified" IS NOT NULL AND btrim(o.password) <> '') THEN o.password
            WHEN c."emailVerified" IS NOT NULL AND btrim(c.password) <> '' THEN c.password END AS password,
       CASE WHEN coalesce(btrim(o.name), '') = '' AND btrim(c.name) <> '' THEN c.name ELSE o.name END AS name,
       c.phone,
       CASE WHEN coalesce(btrim(o.image), '') = '' AND btrim(c.image) <> '' THEN c.image ELSE o.image END AS image,
       'STUDIO_OWNER'::"UserRole" AS "primaryRole", true AS "isActive", false AS "isSuspended",
       least(o."createdAt", c."createdAt") AS "createdAt", greatest(o."updatedAt", c."updatedAt") AS "updatedAt"
FROM studio_owners AS o
LEFT JOIN (customer_user AS m JOIN customers AS c ON c.id = m.customer_id AND m.joined) ON m.user_id = o.id
UNION ALL
SELECT c.id, c.email, c."emailVerified", c.password, c.name, c.phone, c.image, 'CUSTOMER', true, false, c."createdAt", c."updatedAt"
FROM customers AS c JOIN customer_user AS m ON m.customer_id = c.id WHERE NOT m.joined
UNION ALL
SELECT g.user_id, g.email, NULL, NULL, g.name, g.phone, NULL, 'CUSTOMER', true, false, g.created, g.updated FROM guest AS g;

CREATE TEMPORARY VIEW expected_user_role_assignments AS
SELECT 'c' || left(encode(sha256(convert_to('role:' || r.user_id || ':' || r.role, 'UTF8')), 'hex'), 24) AS id,
       r.user_id AS "userId", r.role::"UserRole" AS role, NULL::text AS "studioId", 'SYSTEM_MIGRATION' AS "grantedBy",
       localtimestamp(3) AS "grantedAt", NULL::timestamp AS "expiresAt"
FROM (SELECT id AS user_id, 'STUDIO_OWNER' AS role FROM studio_owners
      UNION ALL SELECT user_id, 'CUSTOMER' FROM customer_user
      UNION ALL SELECT user_id, 'CUSTOMER' FROM guest) AS r;

CREATE TEMPORARY VIEW expected_studio_ownership AS
SELECT 'c' || left(encode(sha256(convert_to('ownership:' || s."ownerId" || ':' || s.id, 'UTF8')), 'hex'), 24) AS id,
       s."ownerId" AS "userId", s.id AS "studioId", true AS "isPrimary", true AS "canTransfer", 'SYSTEM_MIGRATION' AS "invitedBy",
       localtimestamp(3) AS "invitedAt", localtimestamp(3) AS "acceptedAt"
FROM studios AS s WHERE s."ownerId" IS NOT NULL;

-- An owner who is joined with a customer takes his sign-ins along only if his address was verified.
CREATE TEMPORARY VIEW expected_new_accounts AS
SELECT a.* FROM accounts AS a
WHERE NOT EXISTS (SELECT FROM customer_user AS m WHERE m.joined AND NOT m.owner_verified AND m.user_id = a."userId");

CREATE TEMPORARY VIEW expected_new_sessions AS
SELECT s.* FROM sessions AS s
WHERE NOT EXISTS (SELECT FROM customer_user AS m WHERE m.joined AND NOT m.owner_verified AND m.user_id = s."userId");

CREATE TEMPORARY VIEW expected_new_bookings AS
SELECT b.id, b."studioId", b."serviceId", coalesce(m.user_id, k.user_id) AS "customerId", b."customerName", b."customerEmail",
       b."customerPhone", b."preferredDate", b."preferredTime", b.message, b."explicitHealthConsent", b."healthConsentGivenAt",
       b."healthConsentText", b."healthConsentWithdrawnAt", b.status, NULL::text AS "confirmedBy", NULL::timestamp AS "confirmedAt",
       NULL::text AS "cancelledBy", NULL::timestamp AS "cancelledAt", b."createdAt", b."updatedAt"
FROM bookings AS b
LEFT JOIN customer_user AS m ON m.customer_id = b."customerId"
LEFT JOIN key_user AS k ON k.key = CASE WHEN b."customerId" IS NULL THEN lower(btrim(b."customerEmail") COLLATE "C") END;

CREATE TEMPORARY VIEW "expected__UserFavorites" AS
SELECT f."B" AS "A", m.user_id AS "B" FROM "_CustomerFavorites" AS f JOIN customer_user AS m ON m.customer_id = f."A";
