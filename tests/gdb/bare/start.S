/*
 * Where QEMU's -kernel enters an ELF file with this note, in 32-bit protected mode:
 * the first GiB is mapped one to one, then main() runs in 64-bit mode.
 * See docs/system/i386/pvh and Xen's docs/misc/pvh: XEN_ELFNOTE_PHYS32_ENTRY is 18.
 */
	.section .note.pvh, "a", @note
	.long 4, 8, 18
	.asciz "Xen"
	.quad start32

	.text
	.code32
	.globl start32, _start
_start:
start32:
	movl $stack_top, %esp
	movl $pml4, %eax
	movl %eax, %cr3
	movl %cr4, %eax
	orl $0x620, %eax
	movl %eax, %cr4
	movl $0xc0000080, %ecx
	rdmsr
	orl $0x100, %eax
	wrmsr
	movl %cr0, %eax
	andl $~0x4, %eax
	orl $0x80000001, %eax
	movl %eax, %cr0
	lgdt gdt_pointer
	ljmp $8, $start64
	.code64
start64:
	movw $16, %ax
	movw %ax, %ss
	movw %ax, %ds
	movw %ax, %es
	xorl %ebp, %ebp
	call main
1:	hlt
	jmp 1b

	.data
	.balign 4096
pml4:	.quad pdpt + 3
	.fill 511, 8, 0
pdpt:	.quad pd + 3
	.fill 511, 8, 0
pd:
	.set page, 0
	.rept 512
	.quad (page << 21) | 0x83
	.set page, page + 1
	.endr
gdt:	.quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
	.word 23
	.long gdt
	.section .note.GNU-stack, "", @progbits
	.bss
	.balign 16
	.skip 16384
stack_top:
