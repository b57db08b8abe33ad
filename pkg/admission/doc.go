/*
Package admission is the frame that the rules of the webhook stand in: what a rule
gets, what it returns, and what becomes of the result.

A rule (Rule) is a package below this one. It decides; this package decodes the
review, applies the mode, checks the override, counts and writes the response.

Invariants:

 1. A rule never allows what it could not find out. It returns Failed, and the
    webhook entry defines whether that refuses the request (labelled objects) or lets
    it pass (everything else).
 2. Audit mode changes the verdict of a refusal and nothing else: the same
    decision is made, counted, and reported in a warning and an audit annotation.
 3. Every refusal has what was refused, why, and the exact next step.
 4. An override is checked only after a rule has refused, so that an allowed
    request costs no access review and is not counted as overridden.
 5. Rules, reasons, modes and decisions are closed enums; every metric series
    exists from the start.
*/
package admission
