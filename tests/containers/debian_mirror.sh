#!/bin/sh
# Prints where this machine has its Debian packages from, or deb.debian.org if it does not say.
# shellcheck disable=SC2016 # $(SITE) is apt's own
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | grep -E '/debian/?$' | head -1)
echo "${mirror:-http://deb.debian.org/debian}"
