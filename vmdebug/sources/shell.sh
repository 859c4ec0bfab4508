# Read by each interactive shell of vmdebug's initramfs, see console.
#
# busybox shows a prompt only where it edits the line itself, so the prompt is
# written while the shell expands it, and expands to nothing.
prompt() {
	case $PWD in
	"$HOME" | "$HOME"/*) printf '~%s # ' "${PWD#"$HOME"}" ;;
	*) printf '%s # ' "$PWD" ;;
	esac >/dev/tty
}
PS1='$(prompt)'
PS2='$(printf "> " >/dev/tty)'
