# Completion of berth for fish. The words are berth's own: berth complete WORD...
function __berth_complete
    set -l before (commandline -opc)
    set -l typed (commandline -ct)
    set -l offers ($before[1] complete $before[2..] "$typed" 2>/dev/null)
    if test (count $offers) -gt 0
        printf '%s\n' $offers
    else
        __fish_complete_path "$typed"
    end
end
complete -c berth -f -a '(__berth_complete)'
