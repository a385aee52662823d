ALTER TABLE user_role_assignments DROP CONSTRAINT "user_role_assignments_userId_fkey", DROP CONSTRAINT "user_role_assignments_studioId_fkey";
ALTER TABLE studio_ownership DROP CONSTRAINT "studio_ownership_userId_fkey", DROP CONSTRAINT "studio_ownership_studioId_fkey";
ALTER TABLE new_accounts DROP CONSTRAINT "new_accounts_userId_fkey";
ALTER TABLE new_sessions DROP CONSTRAINT "new_sessions_userId_fkey";
ALTER TABLE new_bookings DROP CONSTRAINT "new_bookings_studioId_fkey", DROP CONSTRAINT "new_bookings_serviceId_fkey",
    DROP CONSTRAINT "new_bookings_customerId_fkey";
ALTER TABLE "_UserFavorites" DROP CONSTRAINT "_UserFavorites_A_fkey", DROP CONSTRAINT "_UserFavorites_B_fkey";
ALTER TABLE audit_logs DROP CONSTRAINT "audit_logs_userId_fkey";
ALTER TABLE users DROP CONSTRAINT users_pkey;
ALTER TABLE user_role_assignments DROP CONSTRAINT user_role_assignments_pkey;
ALTER TABLE studio_ownership DROP CONSTRAINT studio_ownership_pkey;
ALTER TABLE new_accounts DROP CONSTRAINT new_accounts_pkey;
ALTER TABLE new_sessions DROP CONSTRAINT new_sessions_pkey;
ALTER TABLE new_bookings DROP CONSTRAINT new_bookings_pkey;
ALTER TABLE "_UserFavorites" DROP CONSTRAINT "_UserFavorites_AB_pkey";
DROP INDEX users_email_key, "users_primaryRole_idx", user_role_assignments_role_idx, "user_role_assignments_userId_role_studioId_key",
    "studio_ownership_userId_studioId_key", "new_accounts_provider_providerAccountId_key", "new_sessions_sessionToken_key",
    "new_bookings_studioId_idx", "new_bookings_customerId_idx", "new_bookings_customerEmail_idx", "new_bookings_status_createdAt_idx",
    "_UserFavorites_B_index";
