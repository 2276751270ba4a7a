package config

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	dayPart  = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?|\.[0-9]+)d`)
	wordUnit = regexp.MustCompile(`^([0-9.]+)\s*(milliseconds?|msecs?|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|weeks?)$`)
)

// parseDuration reads a Go duration, which may begin with days: 500ms, 1h30m,
// 7d, 1d12h. Days have 24 hours. 0 needs no unit.
func parseDuration(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	if strings.HasPrefix(s, "-") {
		return 0, fmt.Errorf("%s is negative; a duration is 0 or more", quote(s))
	}
	rest, days := s, time.Duration(0)
	if m := dayPart.FindString(s); m != "" {
		f, err := strconv.ParseFloat(m[:len(m)-1], 64)
		if err != nil || f > math.MaxInt64/float64(24*time.Hour) {
			return 0, fmt.Errorf("%s is too long", quote(s))
		}
		days, rest = time.Duration(f*float64(24*time.Hour)), s[len(m):]
		if rest == "" {
			return days, nil
		}
	}
	d, err := time.ParseDuration(rest)
	switch {
	case err == nil && d >= 0 && rest[0] != '+' && d <= math.MaxInt64-days:
		return days + d, nil
	case err == nil && d >= 0 && rest[0] != '+':
		return 0, fmt.Errorf("%s is too long", quote(s))
	}
	if _, err := strconv.ParseFloat(s, 64); err == nil && !strings.ContainsAny(s, "nNiI") {
		return 0, fmt.Errorf("%s has no unit; write %sms, %ss, %sm, %sh or %sd", quote(s), s, s, s, s, s)
	}
	if m := wordUnit.FindStringSubmatch(s); m != nil {
		return 0, fmt.Errorf("%s is no duration; write %s", quote(s), shortUnit(m[1], m[2]))
	}
	return 0, fmt.Errorf("%s is no duration; write one such as 500ms, 10s, 1h30m or 7d", quote(s))
}

func shortUnit(number, unit string) string {
	if strings.HasPrefix(unit, "w") {
		if n, err := strconv.Atoi(number); err == nil {
			return strconv.Itoa(7*n) + "d"
		}
		return "7d for a week"
	}
	if strings.HasPrefix(unit, "mil") || strings.HasPrefix(unit, "ms") {
		return number + "ms"
	}
	return number + unit[:1]
}

var sizeForm = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)$`)

var sizeUnits = map[string]float64{"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

// parseSize reads a number of bytes: 512B, 16KiB, 1MiB, 4GiB, 1TiB. 0 needs no
// unit. What is a fraction of a byte is cut off.
func parseSize(s string) (int64, error) {
	if s == "0" {
		return 0, nil
	}
	if strings.HasPrefix(s, "-") {
		return 0, fmt.Errorf("%s is negative; a size is 0 or more", quote(s))
	}
	m := sizeForm.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("%s is no size; write one such as 512KiB or 4GiB", quote(s))
	}
	unit, ok := sizeUnits[m[2]]
	if !ok {
		return 0, sizeUnitError(s, m[1], m[2])
	}
	f, err := strconv.ParseFloat(m[1], 64)
	if err != nil || f*unit >= math.MaxInt64 {
		return 0, fmt.Errorf("%s is too large", quote(s))
	}
	return int64(f * unit), nil
}

func sizeUnitError(s, number, unit string) error {
	if unit == "" {
		return fmt.Errorf("%s has no unit; write %sKiB, %sMiB or %sGiB", quote(s), number, number, number)
	}
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if strings.EqualFold(u, unit) || strings.EqualFold(u[:1]+"B", unit) || strings.EqualFold(u[:1], unit) {
			return fmt.Errorf("%s: the unit is unclear; write %s%s", quote(s), number, u)
		}
	}
	return fmt.Errorf("%s is no size; write one such as 512KiB or 4GiB", quote(s))
}

// parseNumber reads a number as YAML writes it. Leading zeros, which only text in
// quotes and what a range made can have, as in 003, do not make it octal.
func parseNumber(n *node) (Number, error) {
	s := strings.ReplaceAll(n.text, "_", "")
	s = zeros.ReplaceAllString(s, "$1$2") // plain ones are refused by now
	digits := strings.TrimLeft(s, "+-")
	if len(digits) > 2 && digits[0] == '0' && strings.ContainsRune("xXoObB", rune(digits[1])) {
		u, err := strconv.ParseUint(digits, 0, 64)
		if err != nil {
			return "", fmt.Errorf("expected a number, found %s", n.quote())
		}
		if strings.HasPrefix(s, "-") {
			return Number("-" + strconv.FormatUint(u, 10)), nil
		}
		return Number(strconv.FormatUint(u, 10)), nil
	}
	switch strings.ToLower(digits) {
	case ".nan", "nan":
		return "NaN", nil
	case ".inf", "inf", "infinity":
		return Number(strings.TrimRight(s[:1], ".iIn+") + "Inf"), nil
	}
	if !plainNumber.MatchString(s) {
		return "", fmt.Errorf("expected a number, found %s", n.quote())
	}
	return Number(strings.TrimPrefix(s, "+")), nil
}

var (
	plainNumber = regexp.MustCompile(`^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$`)
	zeros       = regexp.MustCompile(`^([-+]?)0+([0-9])`)
)
