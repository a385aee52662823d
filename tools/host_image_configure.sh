#!/bin/sh
# Turns a bare system into a test host; mmdebstrap runs it on the controller with the system's root as its argument.
# Part of the image's recipe: any change here makes a new image.
set -eu
root=$1
in_root() { chroot "$root" "$@"; }

# The operator's account: no password, sudo without one, reached by a key that each run brings along.
in_root useradd --create-home --shell /bin/bash deploy
echo 'deploy ALL=(ALL) NOPASSWD: ALL' > "$root/etc/sudoers.d/deploy"
chmod 0440 "$root/etc/sudoers.d/deploy"

cat > "$root/etc/ssh/sshd_config.d/test-host.conf" <<'CONF'
PasswordAuthentication no
PermitRootLogin no
UseDNS no
CONF

# Every container makes a host key of its own when it starts.
rm -f "$root"/etc/ssh/ssh_host_*
cat > "$root/etc/systemd/system/ssh-host-key.service" <<'UNIT'
[Unit]
Description=Host key of this container
Before=ssh.service ssh.socket

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key

[Install]
WantedBy=multi-user.target
RequiredBy=ssh.service
UNIT
in_root systemctl enable --quiet ssh-host-key.service ssh.service
if [ -e "$root/lib/systemd/system/ssh.socket" ]; then
    in_root systemctl disable --quiet ssh.socket
fi

# Of no use in a container that lives for minutes.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    systemd-udevd.service getty.target console-getty.service systemd-logind.service; do
    in_root systemctl mask --quiet "$unit"
done
: > "$root/etc/machine-id"

# The one cluster, made anew: packaging takes its encoding from whatever environment it was installed in.
in_root pg_lsclusters --no-header | while read -r major name _; do
    in_root pg_dropcluster "$major" "$name"
    in_root pg_createcluster --locale=C.UTF-8 --start-conf=auto "$major" "$name" > /dev/null
done

# Where the packages came from is the machine's business, not the image's.
rm -rf "$root/etc/apt/sources.list" "$root"/etc/apt/sources.list.d/* "$root/etc/apt/apt.conf.d/99mmdebstrap" \
    "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*
