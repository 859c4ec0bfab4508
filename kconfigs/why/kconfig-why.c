// SPDX-License-Identifier: GPL-2.0-only
/*
 * Prints what keeps options of a kernel configuration from having another value.
 *
 * vmdebug links it with the object files of scripts/kconfig that `make *config` has made in the kernel's
 * own tree, so that each kernel's Kconfig is read by its own parser. It uses only what all versions have
 * in common: struct symbol, its dependencies, expr_gstr_print().
 *
 * make runs it in place of one of its own programs, with any arguments; the options are in $KCONFIG_WHY. It
 * prints a line for each fact: the option, the kind of the fact, and its value, separated by tabs.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lkc.h"

static const char VALUES[] = "nmy";

static void fact(struct symbol *sym, const char *kind, const char *value)
{
	printf("%s\t%s\t%s\n", sym->name, kind, value);
}

/* Prints each operand of the top-level ANDs that keeps the option below y, with the values of its symbols. */
static void limits(struct symbol *sym, const char *kind, struct expr *e)
{
	struct gstr text;
	tristate value;

	if (!e)
		return;
	if (e->type == E_AND) {
		limits(sym, kind, e->left.expr);
		limits(sym, kind, e->right.expr);
		return;
	}
	value = expr_calc_value(e);
	if (value == yes)
		return;
	text = str_new();
	str_printf(&text, "%c ", VALUES[value]);
	expr_gstr_print(e, &text);
	fact(sym, kind, str_get(&text));
	str_free(&text);
}

/* Prints each operand of the top-level ORs that selects the option. */
static void selectors(struct symbol *sym, struct expr *e)
{
	struct gstr text;

	if (!e)
		return;
	if (e->type == E_OR) {
		selectors(sym, e->left.expr);
		selectors(sym, e->right.expr);
		return;
	}
	if (expr_calc_value(e) == no)
		return;
	text = str_new();
	expr_gstr_print(e, &text);
	fact(sym, "selected", str_get(&text));
	str_free(&text);
}

/* Prints the option of the same choice that is set instead. */
static void chosen(struct symbol *sym, struct menu *entry)
{
	struct menu *other;

	if (!entry || !entry->parent || !sym_is_choice_value(sym))
		return;
	for (other = entry->parent->list; other; other = other->next) {
		if (!other->sym || other->sym == sym || !other->sym->name)
			continue;
		sym_calc_value(other->sym);
		if (sym_get_tristate_value(other->sym) == yes)
			fact(sym, "chosen", other->sym->name);
	}
}

static void tell(struct symbol *sym)
{
	struct property *prompt;
	bool asked = false;

	sym_calc_value(sym);
	fact(sym, "value", sym_get_string_value(sym));
	limits(sym, "depends", sym->dir_dep.expr);
	selectors(sym, sym->rev_dep.expr);
	for_all_prompts(sym, prompt) {
		asked = true;
		limits(sym, "visible", prompt->visible.expr);
		chosen(sym, prompt->menu);
	}
	if (!asked)
		fact(sym, "promptless", "");
}

int main(int argc, char *argv[])
{
	const char *names = getenv("KCONFIG_WHY");
	/* As in scripts/kconfig/Makefile. */
	const char *file = getenv("KBUILD_KCONFIG");
	char *name, *rest;

	if (!names) {
		/* It replaces Python then, and Kconfig files that run $(PYTHON3) get this program: run Python. */
		argv[0] = "python3";
		execvp(argv[0], argv);
		return 127;
	}
	rest = strdup(names);
	unsetenv("KCONFIG_WHY");
	conf_parse(file && *file ? file : "Kconfig");
	conf_read(NULL);
	for (name = strtok(rest, " "); name; name = strtok(NULL, " ")) {
		struct symbol *sym = sym_find(name);

		if (!sym || sym->type == S_UNKNOWN)
			printf("%s\tunknown\t\n", name);
		else
			tell(sym);
	}
	return 0;
}
