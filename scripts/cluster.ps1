# A cluster on this machine, for trying things out: scripts/cluster.sh for Windows.
#
#   scripts\cluster.ps1 start [N] | stop | status | kill ID | restart ID | roll | add | clean
#
# Where scripts may not be run: powershell -ExecutionPolicy Bypass -File scripts\cluster.ps1 start
#
# Nodes listen on 127.0.0.1:7101 and the ports after it (KONTIKI_PORT changes the first one); data, logs and pid files
# lie under .\.cluster (KONTIKI_DIR changes that). The number of nodes and the first port are remembered there.
# KONTIKI_BIN names a binary to use instead of building one. Written for PowerShell 5.1; needs cargo, nothing else.
#
# Two things differ from cluster.sh. A redirected process always begins a new file, so the log of a node's earlier lives is
# appended to nI.old.log. And nodes inherit what this script prints to: whoever reads that through a pipe sees its end only
# when the nodes have ended; print to a console or a file.
Set-StrictMode -Version 2
$ErrorActionPreference = 'Stop'
$PSNativeCommandUseErrorActionPreference = $false  # PowerShell 7 can take an exit code for an error; they are looked at here

$HostName = '127.0.0.1'
$NodesDefault = 3
$NodesMax = 15           # more voters than this help nobody, least of all on one machine
$WaitReadySeconds = 30   # a first start has to create files and elect a leader; a slow disk takes its time
$WaitGoneSeconds = 5     # a process that was told to end needs milliseconds
$ReplySeconds = 2        # a node that takes longer to answer /health is not serving
$LogTailLines = 15

$Self = 'scripts\cluster.ps1'
$Top = Split-Path -Parent $PSScriptRoot
$MarkerName = '.kontiki-cluster'  # says that the directory is ours, and holds what has to be remembered

function Write-Complaint([string]$Message) { [Console]::Error.WriteLine($Message) }
function Fail([string]$Message, [int]$Code = 1) {
    Write-Complaint "${Self}: $Message"
    exit $Code
}
function Fail-Usage([string]$Message) {
    Fail "$Message; usage: $Self start [N] | stop | status | kill ID | restart ID | roll | add | clean" 2
}
function Confirm-NoMoreWords { if ($Words.Count -gt 0) { Fail-Usage "$Verb takes no further words" } }
trap { Fail "$_" }  # whatever is not foreseen below

# The number, -1 when it is none.
function Get-Number([string]$Text) {
    if ($Text -match '^[0-9]{1,5}$') { return [int]$Text }
    return -1
}
# Relative paths begin where the shell is, which is not where .NET believes the process to be.
function Get-FullPath([string]$Path) {
    return [IO.Path]::GetFullPath($ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($Path)).TrimEnd('\')
}
# As a word that can be pasted into PowerShell.
function Get-Quoted([string]$Text) { return "'" + $Text.Replace("'", "''") + "'" }

# --- the directory and what it remembers ---

$Directory = $env:KONTIKI_DIR
if (-not $Directory) { $Directory = '.\.cluster' }
$Directory = Get-FullPath $Directory
$Marker = Join-Path $Directory $MarkerName
$script:First = 0  # members the cluster began with
$script:Nodes = 0  # nodes now, those that were added included
$script:Port = 0

function Read-Cluster {
    if (-not (Test-Path -LiteralPath $Marker -PathType Leaf)) { return $false }
    $found = @{ port = -1; first = -1; nodes = -1 }
    foreach ($line in @(Get-Content -LiteralPath $Marker)) {
        if ($line -match '^(port|first|nodes)=([0-9]{1,5})$') { $found[$Matches[1]] = [int]$Matches[2] }
    }
    $script:Port = $found['port']
    $script:First = $found['first']
    $script:Nodes = $found['nodes']
    if ($script:Port -lt 0 -or $script:First -lt 1 -or $script:Nodes -lt $script:First) {
        Fail "$Marker is damaged: it should hold port=, first= and nodes="
    }
    return $true
}

# Written beside and renamed, so that an interrupted script leaves the old numbers or the new ones.
function Write-Cluster {
    try {
        [IO.File]::WriteAllText("$Marker.new", "port=$script:Port`nfirst=$script:First`nnodes=$script:Nodes`n")
        if (Test-Path -LiteralPath $Marker) {
            [IO.File]::Replace("$Marker.new", $Marker, [NullString]::Value)
        } else {
            [IO.File]::Move("$Marker.new", $Marker)
        }
    } catch {
        Fail "cannot write ${Marker}: $_"
    }
}

function Confirm-Cluster {
    if (-not (Read-Cluster)) { Fail "no cluster in $Directory; begin one with: $Self start" }
}

function Confirm-Id([string[]]$Words) {
    if ($Words.Count -ne 1) { Fail-Usage "$Verb takes one ID" }
    Confirm-Cluster
    $id = Get-Number $Words[0]
    if ($id -lt 1 -or $id -gt $script:Nodes) { Fail "no node '$($Words[0])': ids are 1..$script:Nodes" 2 }
    return $id
}

function Get-Address([int]$Id) { return "${HostName}:$($script:Port + $Id - 1)" }
# The addresses of nodes 1..$Count, with commas.
function Get-Addresses([int]$Count) { return (@(1..$Count | ForEach-Object { Get-Address $_ }) -join ',') }
function Get-NodePath([int]$Id, [string]$Suffix) { return (Join-Path $Directory "n$Id$Suffix") }

# --- processes ---

$script:Started = @()    # ids of the nodes that this script has started
$script:Processes = @{}  # by id, of the nodes that it has started or found

# The process of a node when it runs, or nothing. A pid may have been given to another program since it was written down:
# only a process whose command line names the node's data directory is the node.
function Get-Node([int]$Id) {
    $file = Get-NodePath $Id '.pid'
    if (-not (Test-Path -LiteralPath $file -PathType Leaf)) { return }
    $text = [string](Get-Content -LiteralPath $file -TotalCount 1)
    if ($text -notmatch '^[0-9]{1,9}$') { return }
    $process = Get-Process -Id ([int]$text) -ErrorAction SilentlyContinue
    $shown = Get-CimInstance Win32_Process -Filter "ProcessId = $text"
    if (-not $process -or -not $shown) { return }
    if (-not $shown.CommandLine) {
        if ($shown.Name -notlike 'kontiki*') { return }
        Fail "process $text may be node $Id, but does not show its command line; do this as the administrator who started it, or remove $file"
    }
    $line = $shown.CommandLine.Replace('"', '') + ' '
    if ($line.IndexOf(' --data ' + (Get-NodePath $Id '') + ' ', [StringComparison]::OrdinalIgnoreCase) -lt 0) { return }
    return $process
}

# Ends the nodes named. There is no gentler way on Windows, and none is needed: the process holds nothing that needs a farewell.
function Stop-Nodes([int[]]$Ids) {
    $running = @(foreach ($id in $Ids) { Get-Node $id })
    foreach ($process in $running) { Stop-Process -InputObject $process -Force -ErrorAction SilentlyContinue }
    foreach ($process in $running) {
        if (-not $process.WaitForExit($WaitGoneSeconds * 1000)) { Fail "process $($process.Id) does not end; see $Directory\n*.pid" }
    }
    foreach ($id in $Ids) { Remove-Item -LiteralPath (Get-NodePath $id '.pid') -Force -ErrorAction SilentlyContinue }
}

function Find-Binary([bool]$Build) {
    if ($env:KONTIKI_BIN) {
        $binary = Get-FullPath $env:KONTIKI_BIN
        if (-not (Test-Path -LiteralPath $binary -PathType Leaf)) { Fail "KONTIKI_BIN: $binary is not a program" }
        return $binary
    }
    $target = Join-Path $Top 'target'
    if ($env:CARGO_TARGET_DIR) { $target = Get-FullPath $env:CARGO_TARGET_DIR }
    $binary = Join-Path $target 'release\kontiki.exe'
    $there = Test-Path -LiteralPath $binary -PathType Leaf
    # `start` asks cargo, who knows whether the binary is up to date; the other verbs build only what is missing.
    if ($Build -or -not $there) {
        if (Get-Command cargo -CommandType Application -ErrorAction SilentlyContinue) {
            & cargo build --release --quiet --manifest-path (Join-Path $Top 'Cargo.toml') --bin kontiki --target-dir $target | Out-Host
            if ($LASTEXITCODE -ne 0) { Fail 'cargo build --release failed' }
        } elseif (-not $there) {
            Fail "cargo is not installed (see https://rustup.rs), and there is no $binary"
        }
    }
    if (-not (Test-Path -LiteralPath $binary -PathType Leaf)) { Fail "cargo build left no $binary" }
    return $binary
}

# Whether somebody listens at a node's address. Asked of the system: Windows tries a refused connection again for a while.
function Test-Listener([int]$Id) {
    $port = $script:Port + $Id - 1
    $listeners = [Net.NetworkInformation.IPGlobalProperties]::GetIPGlobalProperties().GetActiveTcpListeners()
    return @($listeners | Where-Object { $_.Port -eq $port -and "$($_.Address)" -in $HostName, '0.0.0.0', '::' }).Count -gt 0
}

# Nodes that the cluster has let go for ever (`member remove`): their directories say so.
$script:Removed = @()
function Find-Removed([string]$Binary) {
    foreach ($id in 1..$script:Nodes) {
        $data = Get-NodePath $id ''
        if (-not (Test-Path -LiteralPath $data -PathType Container) -or (Get-Node $id)) { continue }
        $said = @(& $Binary inspect identity $data) -join ' '
        if ($said -match 'removed from its cluster') { $script:Removed += $id }
    }
}
function Get-MemberIds { return @(1..$script:Nodes | Where-Object { $_ -notin $script:Removed }) }
# Addresses of the members but for one, with commas.
function Get-OtherAddresses([int]$Id) {
    return (@(Get-MemberIds | Where-Object { $_ -ne $Id } | ForEach-Object { Get-Address $_ }) -join ',')
}

# Starts a node unless it runs. KONTIKI_* variables are settings of `serve` and are passed on, except the script's own and
# those that would contradict the command line.
function Start-Node([int]$Id, [string]$Binary) {
    $process = Get-Node $Id
    if ($process) {
        $script:Processes[$Id] = $process
        return
    }
    $address = Get-Address $Id
    if (Test-Listener $Id) {
        if ($script:Started.Count -gt 0) {
            Write-Complaint "${Self}: node(s) $($script:Started -join ' ') were started and are left running; end them with: $Self stop"
        }
        $other = "$Self clean, then `$env:KONTIKI_PORT = N; $Self start"
        Fail "node ${Id}: $address is taken by another process; end it, or choose other ports: $other"
    }
    $log = Get-NodePath $Id '.log'
    if (Test-Path -LiteralPath $log) { [IO.File]::AppendAllText((Get-NodePath $Id '.old.log'), [IO.File]::ReadAllText($log)) }
    $nothing = Join-Path $Directory 'empty'
    [IO.File]::WriteAllText($nothing, '')
    $how = '--join ' + (Get-OtherAddresses $Id)
    if ($Id -le $script:First) { $how = '--peers ' + (Get-Addresses $script:First) }
    $options = @{
        FilePath = $Binary
        ArgumentList = 'serve --data "{0}" --listen {1} {2}' -f (Get-NodePath $Id ''), $address, $how
        RedirectStandardInput = $nothing
        RedirectStandardOutput = Get-NodePath $Id '.out'  # a file of its own is demanded; `serve` prints nothing there
        RedirectStandardError = $log
        WindowStyle = 'Hidden'  # a console of its own, which Ctrl-C here and closing this one do not reach
        PassThru = $true
    }
    $kept = @{}
    foreach ($name in 'KONTIKI_PORT', 'KONTIKI_DIR', 'KONTIKI_BIN', 'KONTIKI_ADVERTISE', 'KONTIKI_PEERS', 'KONTIKI_JOIN') {
        if (Test-Path "Env:$name") {
            $kept[$name] = (Get-Item "Env:$name").Value
            Remove-Item "Env:$name"
        }
    }
    try {
        $process = Start-Process @options
    } finally {
        foreach ($name in $kept.Keys) { Set-Item "Env:$name" $kept[$name] }
    }
    $script:Processes[$Id] = $process
    $script:Started += $Id
    [IO.File]::WriteAllText((Get-NodePath $Id '.pid'), "$($process.Id)`n")
}

# --- waiting ---

# The status code of GET $Path at a node, 0 when there is no answer.
function Get-Status([int]$Id, [string]$Path) {
    if (-not (Test-Listener $Id)) { return 0 }
    $client = New-Object Net.Sockets.TcpClient
    try {
        $client.Connect($HostName, $script:Port + $Id - 1)
        $stream = $client.GetStream()
        $stream.ReadTimeout = $ReplySeconds * 1000
        $request = [Text.Encoding]::ASCII.GetBytes("GET $Path HTTP/1.1`r`nHost: $(Get-Address $Id)`r`nConnection: close`r`n`r`n")
        $stream.Write($request, 0, $request.Length)
        $reader = New-Object IO.StreamReader($stream)
        $parts = ([string]$reader.ReadLine()).Split(' ')
        if ($parts.Length -ge 2 -and $parts[1] -match '^[0-9]{3}$') { return [int]$parts[1] }
        return 0
    } catch {
        return 0
    } finally {
        $client.Close()
    }
}

function Show-Log([int]$Id) {
    $log = Get-NodePath $Id '.log'
    if (-not (Test-Path -LiteralPath $log)) { return }
    foreach ($line in @(Get-Content -LiteralPath $log -Tail $LogTailLines -Encoding UTF8)) { Write-Complaint "  n$Id.log: $line" }
}

# A node that was just started and is gone has said why in its log.
function Confirm-Alive([int[]]$Ids) {
    foreach ($id in $Ids) {
        if (-not $script:Processes[$id].HasExited) { continue }
        Remove-Item -LiteralPath (Get-NodePath $id '.pid') -Force -ErrorAction SilentlyContinue
        Show-Log $id
        Fail "node $id ($(Get-Address $id)) ended; the last lines of $(Get-NodePath $id '.log') are above"
    }
}

# Waits until $Check answers true; $Alive are the nodes that must stay alive meanwhile. $Check sees the variables of whoever
# calls this, so those here have names of their own.
function Wait-Until([scriptblock]$Check, [int[]]$Alive) {
    $clock = [Diagnostics.Stopwatch]::StartNew()
    while ($true) {
        Confirm-Alive $Alive
        if (& $Check) { return $true }
        if ($clock.Elapsed.TotalSeconds -ge $WaitReadySeconds) {
            foreach ($quiet in $Alive) { Show-Log $quiet }
            return $false
        }
        Start-Sleep -Milliseconds 50
    }
}

# Every node that was just started answers, and one that leads serves.
$script:Leader = ''
function Test-LeaderServes {
    foreach ($id in $script:Started) { if ((Get-Status $id '/health') -eq 0) { return $false } }
    foreach ($id in 1..$script:Nodes) {
        if ((Get-Status $id '/health/leader') -eq 200 -and (Get-Status $id '/health') -eq 200) {
            $script:Leader = Get-Address $id
            return $true
        }
    }
    return $false
}

# --- verbs ---

function Invoke-Start([string[]]$Words) {
    if ($Words.Count -gt 1) { Fail-Usage 'start takes one number at most' }
    $count = 0
    if ($Words.Count -eq 1 -and $Words[0] -ne '') {
        $count = Get-Number $Words[0]
        if ($count -lt 1 -or $count -gt $NodesMax) { Fail-Usage "'$($Words[0])' is not a number of nodes from 1 to $NodesMax" }
    }
    $port = 0
    if ($env:KONTIKI_PORT) {
        $port = Get-Number $env:KONTIKI_PORT
        $most = 65536 - $NodesMax
        if ($port -lt 1 -or $port -gt $most) { Fail "KONTIKI_PORT: '$env:KONTIKI_PORT' is not a port from 1 to $most" 2 }
    }
    if (Read-Cluster) {
        if ($count -ne 0 -and $count -ne $script:First -and $count -ne $script:Nodes) {
            $hint = "add a node with: $Self add, or begin anew with: $Self clean"
            Fail "$Directory holds a cluster of $script:Nodes nodes, not $count; $hint" 2
        }
        if ($port -ne 0 -and $port -ne $script:Port) { Fail "$Directory holds a cluster that begins at port $script:Port, not $port" 2 }
        $binary = Find-Binary $true
        Find-Removed $binary
    } else {
        if ((Test-Path -LiteralPath $Directory) -and @(Get-ChildItem -LiteralPath $Directory -Force).Count -gt 0) {
            Fail "$Directory is not empty and not ours (it has no $MarkerName); choose another KONTIKI_DIR"
        }
        $binary = Find-Binary $true
        try { [void][IO.Directory]::CreateDirectory($Directory) } catch { Fail "cannot make the directory ${Directory}: $_" }
        $script:First = $NodesDefault
        if ($count -ne 0) { $script:First = $count }
        $script:Nodes = $script:First
        $script:Port = 7101
        if ($port -ne 0) { $script:Port = $port }
        Write-Cluster
    }
    foreach ($id in Get-MemberIds) { Start-Node $id $binary }
    if (-not (Wait-Until { Test-LeaderServes } $script:Started)) {
        Fail "no leader serves after $WaitReadySeconds s; the logs are $Directory\n*.log"
    }
    $all = Get-OtherAddresses 0
    $token = ''
    if ($env:KONTIKI_TOKEN_FILE) { $token = "--token-file $(Get-Quoted $env:KONTIKI_TOKEN_FILE) " }
    Write-Output @"
$(@(Get-MemberIds).Count) node(s) on $all, led by $script:Leader; data and logs in $Directory

  & $(Get-Quoted $binary) cli -a '$all' ${token}put city Oslo
  redis-cli -p $script:Port GET city
  http://${HostName}:$script:Port/health in a browser

  $Self status | kill ID | restart ID | roll | add | stop | clean
"@
}

function Invoke-Stop {
    if (-not (Read-Cluster)) {
        Write-Output "no cluster in $Directory"
        return
    }
    Stop-Nodes (1..$script:Nodes)
    Write-Output "stopped; the data stay in $Directory"
}

function Invoke-Status {
    Confirm-Cluster
    $binary = Find-Binary $false
    Find-Removed $binary
    foreach ($id in Get-MemberIds) {
        if (-not (Get-Node $id)) { Write-Complaint "node $id ($(Get-Address $id)) is not running" }
    }
    $line = @('cli', '-a', (Get-OtherAddresses 0))
    if ($env:KONTIKI_TOKEN_FILE) { $line += '--token-file', $env:KONTIKI_TOKEN_FILE }
    & $binary @line status
    exit $LASTEXITCODE
}

function Invoke-Kill([string[]]$Words) {
    $id = Confirm-Id $Words
    if (-not (Get-Node $id)) { Fail "node $id is not running" }
    Stop-Nodes $id
    Write-Output "killed node $id ($(Get-Address $id))"
}

# Waits for an answer only, not for a quorum: after a lost majority the first node back cannot have one.
function Invoke-Restart([string[]]$Words) {
    $id = Confirm-Id $Words
    $binary = Find-Binary $false
    Find-Removed $binary
    if ($id -in $script:Removed) { Fail "node $id was removed from the cluster for ever; take in a new one with: $Self add" }
    Stop-Nodes $id
    Start-Node $id $binary
    if (-not (Wait-Until { (Get-Status $id '/health') -ne 0 } $id)) { Fail "node $id does not answer after $WaitReadySeconds s" }
    Write-Output "restarted node $id ($(Get-Address $id))"
}

function Get-LeaderId { 1..$script:Nodes | Where-Object { (Get-Status $_ '/health/leader') -eq 200 } | Select-Object -First 1 }

# All nodes one by one while they serve: a rolling upgrade, when KONTIKI_BIN names a new binary (one that runs cannot be
# built anew here). Never two nodes away at a time, and none that leads: followers first, then leadership moves, then the last one.
function Invoke-Roll {
    Confirm-Cluster
    $binary = Find-Binary $false
    Find-Removed $binary
    $leader = Get-LeaderId
    if (-not $leader) { Fail "no node leads: nothing is restarted; see: $Self status" }
    foreach ($id in @(Get-MemberIds | Where-Object { $_ -ne $leader }) + $leader) {
        $others = @(Get-MemberIds | Where-Object { $_ -ne $id })
        $serve = { -not ($others | Where-Object { (Get-Status $_ '/health') -ne 200 }) }
        if (-not (Wait-Until $serve $id)) { Fail "the other nodes do not all serve after $WaitReadySeconds s: node $id is not restarted" }
        $elsewhere = { $now = Get-LeaderId; $now -and $now -ne $id }
        if ($others.Count -gt 0 -and -not (& $elsewhere)) {
            $line = @('cli', '-a', (Get-OtherAddresses 0))
            if ($env:KONTIKI_TOKEN_FILE) { $line += '--token-file', $env:KONTIKI_TOKEN_FILE }
            & $binary @line transfer | Out-Null
            if ($LASTEXITCODE -ne 0) { Fail "node $id does not hand leadership over: it is not restarted" }
            if (-not (Wait-Until $elsewhere $id)) { Fail "no other node leads: node $id is not restarted" }
        }
        Stop-Nodes $id
        Start-Node $id $binary
        if (-not (Wait-Until { (Get-Status $id '/health') -eq 200 } $id)) { Fail "node $id does not serve after $WaitReadySeconds s; the others go on" }
        Write-Output "restarted node $id ($(Get-Address $id))"
    }
}

# The new node counts from the moment it serves; until then a failed attempt leaves nothing but its logs and directory, and
# the same command again continues there.
function Invoke-Add {
    Confirm-Cluster
    if ($script:Nodes -ge $NodesMax) { Fail "$NodesMax nodes are the most that $Self runs" }
    $binary = Find-Binary $false
    Find-Removed $binary
    $id = $script:Nodes + 1
    Start-Node $id $binary
    if (-not (Wait-Until { (Get-Status $id '/health') -eq 200 } $id)) {
        Stop-Nodes $id
        Fail "node $id did not join within $WaitReadySeconds s"
    }
    $script:Nodes = $id
    Write-Cluster
    Write-Output "added node $id ($(Get-Address $id))"
}

# The marker goes last: Windows removes no file that a program has open, and what is left must still be known to be ours.
function Remove-Cluster {
    Get-ChildItem -LiteralPath $Directory -Force | Where-Object { $_.Name -ne $MarkerName } | Remove-Item -Recurse -Force
    Remove-Item -LiteralPath $Directory -Recurse -Force
}

function Invoke-Clean {
    if (-not (Read-Cluster)) {
        if (Test-Path -LiteralPath $Directory) { Fail "$Directory is not ours (it has no $MarkerName): not removed" }
        Write-Output "no cluster in $Directory"
        return
    }
    Stop-Nodes (1..$script:Nodes)
    $clock = [Diagnostics.Stopwatch]::StartNew()
    while (Test-Path -LiteralPath $Directory) {
        try {
            Remove-Cluster
        } catch {
            # What scans new files has them open for a moment.
            if ($clock.Elapsed.TotalSeconds -ge $WaitGoneSeconds) { Fail "cannot remove ${Directory}: $_" }
            Start-Sleep -Milliseconds 50
        }
    }
    Write-Output "removed $Directory"
}

if ($env:OS -ne 'Windows_NT') { Fail 'this is for Windows; elsewhere use scripts/cluster.sh' }
$Words = @($args | ForEach-Object { [string]$_ })
if ($Words.Count -eq 0) { Fail-Usage 'no verb given' }
$Verb = $Words[0]
$Words = @($Words | Select-Object -Skip 1)
switch -CaseSensitive ($Verb) {
    'start' { Invoke-Start $Words }
    'stop' { Confirm-NoMoreWords; Invoke-Stop }
    'status' { Confirm-NoMoreWords; Invoke-Status }
    'kill' { Invoke-Kill $Words }
    'restart' { Invoke-Restart $Words }
    'add' { Confirm-NoMoreWords; Invoke-Add }
    'roll' { Confirm-NoMoreWords; Invoke-Roll }
    'clean' { Confirm-NoMoreWords; Invoke-Clean }
    default { Fail-Usage "unknown verb '$Verb'" }
}
exit 0
