#!/usr/bin/env bash
# Fails for the words of scripts/words.txt in all files, apart from the glossary. Of a
# patch it reads the message and the lines that the patch adds.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck disable=SC2016 # The dollars are Perl's.
git ls-files -z -- ':!scripts/words.txt' | xargs -0 perl -e '
	open my $list, "<", "scripts/words.txt" or die "scripts/words.txt: $!\n";
	chomp(my @words = grep { !/^(#|$)/ } <$list>);
	s{ }{\\s+(?:(?://|#|>|\\*|\\+)\\s*)*}g for @words;
	my $found = 0;
	for my $file (@ARGV) {
		open my $in, "<", $file or die "$file: $!\n";
		my $text = do { local $/; <$in> };
		# What is not checked becomes empty lines, so that line numbers are right: the
		# glossary, and in a patch what is upstream.
		$text =~ s/(^\| use \| not \|.*?\n\n)/"\n" x ($1 =~ tr,\n,,)/ems;
		if ($file =~ /\.patch$/ and $text =~ /^diff --git /m) {
			my ($message, $diff) = ($`, $&.$'"'"');
			$diff =~ s/^(?!\+(?!\+\+ )).*//mg;
			$text = $message.$diff;
		}
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
