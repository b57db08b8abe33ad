#!/usr/bin/env bash
# Fails for the words of scripts/words.txt in the files of scope, apart from the glossary.
set -euo pipefail
cd "$(dirname "$0")/.."

# Git's path specifications of what is checked. The excluded pages are generated, or have
# still to be reworded.
scope=(README.md CHANGELOG.md docs ':!docs/control-plane' ':!docs/metrics.md')

# shellcheck disable=SC2016 # The dollars are Perl's.
git ls-files -z -- "${scope[@]}" ':!scripts/words.txt' | xargs -0 perl -e '
	open my $list, "<", "scripts/words.txt" or die "scripts/words.txt: $!\n";
	chomp(my @words = grep { !/^(#|$)/ } <$list>);
	s{ }{\\s+(?:(?://|#|>|\\*)\\s*)*}g for @words;
	my $found = 0;
	for my $file (@ARGV) {
		open my $in, "<", $file or die "$file: $!\n";
		my $text = do { local $/; <$in> };
		# The glossary: its lines stay, empty, so that line numbers are right.
		$text =~ s/(^\| use \| not \|.*?\n\n)/"\n" x ($1 =~ tr,\n,,)/ems;
		for my $word (@words) {
			while ($text =~ /$word/gi) {
				my ($line, $match) = (1 + substr($text, 0, $-[0]) =~ tr/\n//, $&);
				$match =~ s/\s+/ /g;
				print "$file:$line: $match\n";
				$found = 1;
			}
		}
	}
	print "Use the words of docs/development.md, \"Words\".\n" if $found;
	exit $found;
'
