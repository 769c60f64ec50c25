# Completion of berth for bash. The words are berth's own: berth complete WORD...
_berth() {
    local line words cur part candidates prefix
    line=${COMP_LINE:0:${COMP_POINT:-0}}
    [[ -n $line ]] || line="${COMP_WORDS[*]:0:COMP_CWORD+1}"
    read -ra words <<< "$line"
    # An empty last word is still a word.
    [[ $line == *[[:space:]] || ${#words[@]} -lt 2 ]] && words+=("")
    cur=${words[-1]}
    COMPREPLY=()
    mapfile -t candidates < <("${words[0]}" complete "${words[@]:1}" 2> /dev/null)
    # bash takes a word apart at = and :, and wants the last part only.
    part=${COMP_WORDS[COMP_CWORD]}
    [[ $part == [=:] ]] && part=
    prefix=${cur%"$part"}
    local candidate
    for candidate in "${candidates[@]}"; do
        candidate=${candidate%%$'\t'*}
        COMPREPLY+=("${candidate#"$prefix"}")
        [[ $candidate == *= ]] && compopt -o nospace 2> /dev/null
    done
    return 0
}
complete -o default -F _berth berth
