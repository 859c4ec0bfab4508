#!/bin/sh
# Configures a network card of vmdebug's initramfs with what a DHCP server has answered; udhcpc calls it.

[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" broadcast + dev "$interface"
for each in $router; do
	ip route add default via "$each" dev "$interface"
	break
done
for each in $dns; do
	echo "nameserver $each" >>/etc/resolv.conf
done
