#!/bin/busybox sh
# The first process of the helper machine. It reads orders from a virtio port, one a line: NUMBER SECONDS SCRIPT (base64),
# and answers each with: NUMBER STATUS OUTPUT ERRORS (base64, bounded). When the other side goes, the machine ends.
export PATH=/bin:/sbin
OUTPUT_BYTES=1048576 ERROR_BYTES=8192
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
load start

port=""
while [ -z "$port" ]; do
  for each in /sys/class/virtio-ports/*; do
    [ -e "$each/name" ] && [ "$(cat "$each/name")" = drengine ] && port=/dev/${each##*/}
  done
  [ -n "$port" ] || sleep 0.05
done
exec 3<>"$port"

heard=""
while :; do
  if read -r number seconds script <&3; then
    heard=yes
    echo "$script" | base64 -d >/run/order
    timeout -s KILL "$seconds" sh /run/order </dev/null >/run/output 2>/run/errors 3>&-
    status=$?
    echo "$number $status $(head -c $OUTPUT_BYTES /run/output | base64 -w 0 | grep . || echo =) $(tail -c $ERROR_BYTES /run/errors | base64 -w 0 | grep . || echo =)" >&3
  elif [ -n "$heard" ]; then
    break
  else
    sleep 0.05
  fi
done
# Whoever gave the orders is gone. What they left half done is a branch that is converted again.
kill -9 -1
sync
poweroff -f
