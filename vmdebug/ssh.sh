# Prepares a guest for ssh; vmdebug.ssh runs it in the guest's shell, with these variables:
#   mode        `listen`: start sshd, and print its port; `check`: only prepare; `serve`: serve one connection
#   authorized  the public key that logs in
#   host_key    the private key of sshd

umask 077
dir=/run/vmdebug-ssh

sshd=
for each in "$(command -v sshd)" /usr/sbin/sshd /usr/local/sbin/sshd /run/current-system/sw/bin/sshd; do
	if [ -x "$each" ]; then
		sshd=$each
		break
	fi
done
[ "$sshd" ] || exit 120

mkdir -p $dir || exit 1
# An account whose password begins with ! is locked, and only PAM lets it log in.
pam=no
case $(grep '^root:' /etc/shadow 2>/dev/null) in
'root:!'*) pam=yes ;;
esac
if [ "$(cat $dir/host_key 2>/dev/null)" != "$host_key" ] || [ "$(cat $dir/authorized_keys)" != "$authorized" ]; then
	[ ! -r $dir/pid ] || kill "$(cat $dir/pid)" 2>/dev/null
	rm -f $dir/pid $dir/port $dir/checked
	echo "$host_key" >$dir/host_key
	echo "$authorized" >$dir/authorized_keys
	cat >$dir/config <<END
HostKey $dir/host_key
AuthorizedKeysFile $dir/authorized_keys
PidFile $dir/pid
AddressFamily inet
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UseDNS no
PrintMotd no
Subsystem sftp internal-sftp
END
	[ $pam = no ] || echo "UsePAM yes" >>$dir/config
fi
# For privilege separation. systemd removes it when the root's own sshd ends.
[ -d /run/sshd ] || mkdir -m 755 /run/sshd

if [ ! -e $dir/checked ]; then
	"$sshd" -t -f $dir/config || exit 121
	: >$dir/checked
fi
case $mode in
check) exit ;;
serve) exec "$sshd" -i -f $dir/config ;;
esac
if [ -r $dir/port ] && [ -r $dir/pid ] && kill -0 "$(cat $dir/pid)" 2>/dev/null; then
	cat $dir/port
	exit
fi
# Port 22 is for the root's own sshd, if its init starts one, now or later in the boot.
ports="22 2222 22022"
for each in /etc/systemd/system/*.wants/ssh*.service /etc/systemd/system/*.wants/ssh*.socket \
	/etc/runlevels/*/sshd /etc/init.d/S*sshd; do
	if [ -e "$each" ] || [ -L "$each" ]; then
		ports="2222 22022"
	fi
done
# sshd listens after it has become a daemon, and then writes its pid.
for port in $ports; do
	rm -f $dir/pid $dir/log
	"$sshd" -f $dir/config -p $port -E $dir/log
	n=0
	while [ $n -lt 300 ] && ! grep -q "Cannot bind any address" $dir/log; do
		if [ -s $dir/pid ]; then
			echo $port >$dir/port
			echo $port
			exit
		fi
		n=$((n + 1))
		sleep 0.1
	done
done
cat $dir/log >&2
exit 121
