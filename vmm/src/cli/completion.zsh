#compdef berth
# Completion of berth for zsh. The words are berth's own: berth complete WORD...
_berth() {
    local -a lines offers shown unfinished
    local line
    lines=("${(@f)$("${words[1]}" complete "${(@)words[2,CURRENT]}" 2> /dev/null)}")
    for line in $lines; do
        [[ -n $line ]] || continue
        if [[ ${line%%$'\t'*} == *= ]]; then
            unfinished+=("${line%%$'\t'*}")
        else
            offers+=("${line%%$'\t'*}")
            shown+=("${line%%$'\t'*}  ${line#*$'\t'}")
        fi
    done
    if (( $#offers + $#unfinished == 0 )); then
        compset -P '*='
        _files
        return
    fi
    (( $#offers )) && compadd -l -d shown -a offers
    (( $#unfinished )) && compadd -S '' -a unfinished
    return 0
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _berth "$@"
else
    compdef _berth berth
fi
