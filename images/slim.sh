#!/bin/sh
# Leaves of a Debian with Python what a service needs to run: no package manager, no perl, no pip. What goes is taken
# off dpkg's list, too, so that a scanner sees what is there; the copyright files stay.
set -eu

gone="adduser apt cdebconf debconf diffutils dpkg e2fsprogs gpgv libapt-pkg6.0 libblkid1 libdb5.3 libdebconfclient0
libext2fs2 libfdisk1 libgcrypt20 libgmp10 libgnutls30 libgpg-error0 libhogweed6 libidn2-0 libmount1 libnettle8
libp11-kit0 libpam-modules libpam-modules-bin libpam-runtime libpam0g libsemanage-common libsemanage2 libsepol2
libsmartcols1 libss2 libsystemd0 libtasn1-6 libudev1 libunistring2 libxxhash0 login logsave mount passwd perl-base
python3-distutils python3-lib2to3 python3-pip-whl python3-setuptools-whl python3-venv python3.11-venv sysvinit-utils
usr-is-merged util-linux util-linux-extra"

stdlib=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
for module in ensurepip idlelib lib2to3 pydoc_data test tkinter turtledemo; do rm -rf "${stdlib:?}/$module"; done
rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/bin/pip* /usr/local/bin/idle* /usr/local/bin/2to3*

list=$(mktemp)
for package in $gone; do
    for files in "/var/lib/dpkg/info/$package.list" "/var/lib/dpkg/info/$package":*.list; do
        [ ! -e "$files" ] || cat "$files" >> "$list"
    done
done
keep=$(mktemp)
awk -v gone=" $(echo "$gone" | tr '\n' ' ') " 'BEGIN { RS = ""; ORS = "\n\n" }
    { name = $2; if (!index(gone, " " name " ")) print }' /var/lib/dpkg/status > "$keep"
for package in $gone; do rm -f "/var/lib/dpkg/info/$package".* "/var/lib/dpkg/info/$package":*; done
# /bin and /lib, folders on dpkg's lists, are links to folders, and stay.
grep -v '/copyright$' "$list" | while read -r path; do [ -d "$path" ] || rm -f "$path"; done
cat "$keep" > /var/lib/dpkg/status

find /usr/share/doc -depth ! -name copyright ! -type d -delete
find /usr/share/doc -depth -type d -empty -delete
rm -rf /usr/lib/*/gconv /usr/lib/*/perl-base /usr/share/perl* /usr/share/python-wheels /usr/share/man/* \
    /usr/share/info/* /usr/share/locale/* /usr/share/lintian /usr/share/bash-completion /etc/apt /etc/pip.conf \
    /var/lib/apt /var/lib/dpkg/*-old /var/cache/* /var/log/* "$list" "$keep"

# What runs here is nobody of the host.
echo 'beyond:x:10001:10001:beyond-inference:/app:/usr/sbin/nologin' >> /etc/passwd
echo 'beyond:x:10001:' >> /etc/group

# Python still has all that it is asked for.
python -c 'import bz2, ctypes, hashlib, lzma, multiprocessing, sqlite3, ssl, tomllib, uuid, zlib'
