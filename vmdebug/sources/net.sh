# Part of the init process of vmdebug's initramfs: configures the network cards. Each kernel parameter
# vmdebug.net=MAC,ADDRESS/LENGTH|dhcp|none,GATEWAY,DNS is for the card with that MAC address.

interface() { # MAC
	for each in /sys/class/net/*; do
		if [ "$(cat "$each/address")" = "$1" ]; then
			echo "${each##*/}"
			return
		fi
	done
}

configure() { # MAC ADDRESS GATEWAY DNS
	name=$(interface "$1")
	if [ ! "$name" ]; then
		echo "vmdebug: the kernel has no network card with the MAC address $1" >&2
		return
	fi
	ip link set "$name" up
	case $2 in
	none) ;;
	# Waits for 5 s; the program does not run any longer, so the lease is not renewed.
	dhcp) udhcpc -i "$name" -q -n -t 5 -T 1 -s /etc/dhcp >/dev/null 2>&1 ||
		echo "vmdebug: no DHCP server has answered on $name" >&2 ;;
	*)
		ip addr add "$2" broadcast + dev "$name"
		[ ! "$3" ] || ip route add default via "$3" dev "$name"
		[ ! "$4" ] || echo "nameserver $4" >>/etc/resolv.conf
		;;
	esac
}

for word in $(cat /proc/cmdline); do
	case $word in
	vmdebug.net=*)
		IFS=,
		set -- ${word#vmdebug.net=}
		unset IFS
		configure "$@"
		;;
	esac
done
