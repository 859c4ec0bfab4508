# Each interactive shell of vmdebug's initramfs reads this file; see /etc/console.
#
# busybox prints a prompt only when it edits lines itself. So these variables call printf when the shell expands
# them, and expand to nothing.
prompt() {
	case $PWD in
	"$HOME" | "$HOME"/*) printf '~%s # ' "${PWD#"$HOME"}" ;;
	*) printf '%s # ' "$PWD" ;;
	esac >/dev/tty
}
PS1='$(prompt)'
PS2='$(printf "> " >/dev/tty)'
