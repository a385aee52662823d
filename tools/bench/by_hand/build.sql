ALTER TABLE users ADD CONSTRAINT users_pkey PRIMARY KEY (id);
ALTER TABLE user_role_assignments ADD CONSTRAINT user_role_assignments_pkey PRIMARY KEY (id);
ALTER TABLE studio_ownership ADD CONSTRAINT studio_ownership_pkey PRIMARY KEY (id);
ALTER TABLE new_accounts ADD CONSTRAINT new_accounts_pkey PRIMARY KEY (id);
ALTER TABLE new_sessions ADD CONSTRAINT new_sessions_pkey PRIMARY KEY (id);
ALTER TABLE new_bookings ADD CONSTRAINT new_bookings_pkey PRIMARY KEY (id);
ALTER TABLE "_UserFavorites" ADD CONSTRAINT "_UserFavorites_AB_pkey" PRIMARY KEY ("A", "B");
CREATE UNIQUE INDEX users_email_key ON users (email);
CREATE INDEX "users_primaryRole_idx" ON users ("primaryRole");
CREATE INDEX user_role_assignments_role_idx ON user_role_assignments (role);
CREATE UNIQUE INDEX "user_role_assignments_userId_role_studioId_key" ON user_role_assignments ("userId", role, "studioId");
CREATE UNIQUE INDEX "studio_ownership_userId_studioId_key" ON studio_ownership ("userId", "studioId");
CREATE UNIQUE INDEX "new_accounts_provider_providerAccountId_key" ON new_accounts (provider, "providerAccountId");
CREATE UNIQUE INDEX "new_sessions_sessionToken_key" ON new_sessions ("sessionToken");
CREATE INDEX "new_bookings_studioId_idx" ON new_bookings ("studioId");
CREATE INDEX "new_bookings_customerId_idx" ON new_bookings ("customerId");
CREATE INDEX "new_bookings_customerEmail_idx" ON new_bookings ("customerEmail");
CREATE INDEX "new_bookings_status_createdAt_idx" ON new_bookings (status, "createdAt");
CREATE INDEX "_UserFavorites_B_index" ON "_UserFavorites" ("B");
ALTER TABLE user_role_assignments
    ADD CONSTRAINT "user_role_assignments_userId_fkey" FOREIGN KEY ("userId") REFERENCES users (id) ON UPDATE CASCADE ON DELETE CASCADE,
    ADD CONSTRAINT "user_role_assignments_studioId_fkey" FOREIGN KEY ("studioId") REFERENCES studios (id) ON UPDATE CASCADE ON DELETE CASCADE;
ALTER TABLE studio_ownership
    ADD CONSTRAINT "studio_ownership_userId_fkey" FOREIGN KEY ("userId") REFERENCES users (id) ON UPDATE CASCADE ON DELETE CASCADE,
    ADD CONSTRAINT "studio_ownership_studioId_fkey" FOREIGN KEY ("studioId") REFERENCES studios (id) ON UPDATE CASCADE ON DELETE CASCADE;
ALTER TABLE new_accounts
    ADD CONSTRAINT "new_accounts_userId_fkey" FOREIGN KEY ("userId") REFERENCES users (id) ON UPDATE CASCADE ON DELETE CASCADE;
ALTER TABLE new_sessions
    ADD CONSTRAINT "new_sessions_userId_fkey" FOREIGN KEY ("userId") REFERENCES users (id) ON UPDATE CASCADE ON DELETE CASCADE;
ALTER TABLE new_bookings
    ADD CONSTRAINT "new_bookings_studioId_fkey" FOREIGN KEY ("studioId") REFERENCES studios (id) ON UPDATE CASCADE ON DELETE CASCADE,
    ADD CONSTRAINT "new_bookings_serviceId_fkey" FOREIGN KEY ("serviceId") REFERENCES services (id) ON UPDATE CASCADE ON DELETE SET NULL,
    ADD CONSTRAINT "new_bookings_customerId_fkey" FOREIGN KEY ("customerId") REFERENCES users (id) ON UPDATE CASCADE ON DELETE SET NULL;
ALTER TABLE "_UserFavorites"
    ADD CONSTRAINT "_UserFavorites_A_fkey" FOREIGN KEY ("A") REFERENCES studios (id) ON UPDATE CASCADE ON DELETE CASCADE,
    ADD CONSTRAINT "_UserFavorites_B_fkey" FOREIGN KEY ("B") REFERENCES users (id) ON UPDATE CASCADE ON DELETE CASCADE;
ALTER TABLE audit_logs
    ADD CONSTRAINT "audit_logs_userId_fkey" FOREIGN KEY ("userId") REFERENCES users (id) ON UPDATE CASCADE ON DELETE SET NULL;
