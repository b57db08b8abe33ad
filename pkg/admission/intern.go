package admission

import "unique"

// Intern returns the text, in the one copy that all caches of this process share: thousands
// of objects have the same labels, and each is decoded with its own.
func Intern(text string) string {
	if text == "" {
		return ""
	}
	return unique.Make(text).Value()
}

// InternMap returns the map with interned keys and values, nil when it is empty.
func InternMap(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	interned := make(map[string]string, len(m))
	for key, value := range m {
		interned[Intern(key)] = Intern(value)
	}
	return interned
}
