# Shared by the scripts of packaging/; sourced, never run. Defines functions and these constants only.
# shellcheck shell=bash

nexus_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# libfuse has the passthrough API from 3.17 on.
fuse3_wanted=3.17

say() { printf '== %s\n' "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

is_installed() { [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

# Those of the given packages that are not installed, one a line.
missing_packages() {
  local package
  for package in "$@"; do
    is_installed "$package" || printf '%s\n' "$package"
  done
}

# apt-get that never asks, waits for another apt instead of failing, and is heard only when it fails.
apt_quiet() {
  local output
  output=$(DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 "$@" 2>&1) || {
    printf '%s\n' "$output" >&2
    return 1
  }
}

# Runs a command while packages that are being installed may not start their services (the protocol of
# invoke-rc.d: exit status 101 of policy-rc.d means "not allowed"). A policy that the machine has already is kept.
without_service_starts() {
  local policy=/usr/sbin/policy-rc.d status=0
  if [[ -e $policy ]]; then
    "$@"
    return
  fi
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 0755 "$policy"
  "$@" || status=$?
  rm -f "$policy"
  return "$status"
}

# Installs what is missing of the given packages. With nothing missing it asks neither root nor the network.
ensure_packages() {
  local missing
  mapfile -t missing < <(missing_packages "$@")
  ((${#missing[@]} == 0)) && return
  ((EUID == 0)) || die "run this as root, or install: ${missing[*]}"
  say "installing ${missing[*]}"
  apt_quiet update
  without_service_starts apt_quiet install -y --no-install-recommends "${missing[@]}"
}

# Whether version $1 is at least version $2.
version_at_least() { dpkg --compare-versions "$1" ge "$2"; }

# Whether the system's own libfuse is new enough.
system_fuse3_suffices() { version_at_least "$(pkg-config --modversion fuse3 2>/dev/null || echo 0)" "$fuse3_wanted"; }
