// SPDX-License-Identifier: GPL-2.0-only
/*
 * Says what keeps options of a kernel configuration from having another value.
 *
 * Linked with the objects of scripts/kconfig that `make *config` has made in the kernel's own tree,
 * so that any kernel's Kconfig is read by the parser that came with it. It rests on what is the
 * same in all of them: struct symbol, its dependencies, expr_gstr_print().
 *
 * Runs where `make *config` runs its programs, with the names in $KCONFIG_WHY, and whatever arguments. Writes
 * a line for each fact: the option, the kind of the fact, and its value, with tabs between them.
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

/* Each operand of the topmost ANDs that holds the option below y, with the values of what is in it. */
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

/* Each operand of the topmost ORs that selects the option. */
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

/* The option that a choice has taken instead. */
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
	/* As scripts/kconfig/Makefile has it. */
	const char *file = getenv("KBUILD_KCONFIG");
	char *name, *rest;

	if (!names) {
		/* Where it stands for Python, Kconfig that asks $(PYTHON3) for something asks this program. */
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
